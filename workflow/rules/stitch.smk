rule stitch:
    input:
        ingested="results/{image}/ingest.json",
        split="results/{image}/split.json",
        slabs=gather.slab("results/{{image}}/predict/{scatteritem}.json"),
    output:
        "results/{image}/stitch.json",
    log:
        "logs/{image}/stitch.log",
    benchmark:
        "benchmarks/{image}/stitch.tsv"
    conda:
        "../../environment.yml"
    threads: machine_cores()
    params:
        threshold=CONFIG.threshold,
        image=CONFIG.with_image,
        scheduler=CONFIG.scheduler,
        stores=CONFIG.stores,
        block_seconds=CONFIG.block_seconds,
        gone=is_incomplete,
        version=VERSION,
    script:
        "../../scripts/stitch.py"
