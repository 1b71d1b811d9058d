rule ingest:
    input:
        ancient(source_of),
    output:
        "results/{image}/ingest.json",
    log:
        "logs/{image}/ingest.log",
    benchmark:
        "benchmarks/{image}/ingest.tsv"
    conda:
        "../../environment.yml"
    threads: machine_cores()
    params:
        source=source_spec,
        signature=image_signature,
        model=model_of,
        scheduler=CONFIG.scheduler,
        stores=CONFIG.stores,
        block_seconds=CONFIG.block_seconds,
        version=VERSION,
    script:
        "../../scripts/ingest.py"
