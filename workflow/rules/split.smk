rule split:
    input:
        ingested="results/{image}/ingest.json",
        model=model_files,
    output:
        "results/{image}/split.json",
    log:
        "logs/{image}/split.log",
    benchmark:
        "benchmarks/{image}/split.tsv"
    params:
        model=model_of,
        request=asdict(CONFIG.request),
        slabs=len(gather.slab("{scatteritem}")),
        version=VERSION,
    script:
        "../../scripts/split.py"
