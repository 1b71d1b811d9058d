rule train:
    input:
        ancient(train_files),
    output:
        touch(f"models/.receipts/{TRAINING_NAME}"),
    log:
        f"logs/train/{TRAINING_NAME}.log",
    benchmark:
        f"benchmarks/train/{TRAINING_NAME}.tsv"
    conda:
        "../../environment.yml"
    threads: machine_cores()
    resources:
        gpu=0,
    params:
        training=config.get("train"),
        signatures=train_signatures,
        starts=train_starts,
        repairs=train_repairs,
        version=VERSION,
    script:
        "../../scripts/train.py"
