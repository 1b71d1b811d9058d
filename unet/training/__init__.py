"""From labelled images to a model folder, in the order that the data goes.

    config      what is asked for, checked
    labelled    images and labels, read, normalised and split
    targets     labels to classes, and the weight of every pixel in the loss
    sampling    windows, drawn and bent: sample (seed, step, index) is always the same
    trainer     the loss, the steps, the running mean of the weights
    checkpoint  what a stopped training goes on from
    load_pretrained       the weights of another U-Net, to start from

`unet.stages.train` calls them. What makes a resumed training equal to an uninterrupted one is that
nothing random is carried over: every sample and every dropped value follow from the seed and the
number of the step.
"""
