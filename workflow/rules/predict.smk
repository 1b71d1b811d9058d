rule predict:
    input:
        "results/{image}/split.json",
    output:
        "results/{image}/predict/{scatteritem}.json",
    log:
        "logs/{image}/predict-{scatteritem}.log",
    benchmark:
        "benchmarks/{image}/predict-{scatteritem}.tsv"
    conda:
        "../../environment.yml"
    threads: machine_cores()
    resources:
        gpu=0,
    params:
        device=CONFIG.device,
        scheduler=CONFIG.scheduler,
        stores=CONFIG.stores,
        block_seconds=CONFIG.block_seconds,
        version=VERSION,
    script:
        "../../scripts/predict.py"
