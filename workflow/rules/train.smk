rule train:
    input:
        train_files,
    output:
        model=f"models/{TRAINING_NAME}/model.yaml",
        weights=f"models/{TRAINING_NAME}/weights.safetensors",
        curves=f"models/{TRAINING_NAME}/curves.csv",
        picture=f"models/{TRAINING_NAME}/curves.svg",
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
        version=VERSION,
    script:
        "../../scripts/train.py"
