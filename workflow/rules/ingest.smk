rule ingest:
    input:
        source_of,
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
        scheduler=CONFIG.scheduler,
        version=VERSION,
    script:
        "../../scripts/ingest.py"
