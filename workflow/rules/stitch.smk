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
        options=asdict(CONFIG.stitch),
        scheduler=CONFIG.scheduler,
        stores=CONFIG.stores,
        block_seconds=CONFIG.block_seconds,
        repairs=result_repairs,
        version=VERSION,
    script:
        "../../scripts/stitch.py"
