rule verify:
    input:
        expand("results/{image}/verify.json", image=CONFIG.images),


rule verify_image:
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
        stitch=asdict(CONFIG.stitch),
        sample=CONFIG.verify,
        stores=CONFIG.stores,
        device=CONFIG.device,
        scheduler=CONFIG.scheduler,
        block_seconds=CONFIG.block_seconds,
        started_at=now,
        version=VERSION,
    script:
        "../../scripts/verify.py"
