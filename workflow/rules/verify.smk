rule verify:
    input:
        expand("results/{image}/verify.json", image=CONFIG.images),


rule prove:
    input:
        "results/{image}/stitch.json",
    output:
        "results/{image}/verify.json",
    log:
        "logs/{image}/verify.log",
    benchmark:
        "benchmarks/{image}/verify.tsv"
    conda:
        "../../environment.yml"
    threads: machine_cores()
    resources:
        gpu=0,
    params:
        source=source_spec,
        threshold=CONFIG.threshold,
        image=CONFIG.with_image,
        proof=CONFIG.proof,
        stores=CONFIG.stores,
        device=CONFIG.device,
        scheduler=CONFIG.scheduler,
        block_seconds=CONFIG.block_seconds,
        asked_at=now,
        version=VERSION,
    script:
        "../../scripts/verify.py"
