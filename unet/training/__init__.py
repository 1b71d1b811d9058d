"""From labelled images to a model folder, in the order that the data goes.

    config      the options of a training, checked
    labelled    images and labels, read, normalised and cut into parts
    targets     labels to classes, and the weight of every pixel in the loss
    sampling    windows, drawn and deformed: sample (seed, step, index) is always the same
    trainer     the loss, the steps, the running mean of the weights
    checkpoint  the file that a stopped training resumes from
    pretrained  the weights of another U-Net, to start from

`unet.stages.train` calls them. A resumed training equals an uninterrupted one, since no random
state passes from one step to the next: every sample and every dropped value follow from the seed
and the number of the step.
"""
