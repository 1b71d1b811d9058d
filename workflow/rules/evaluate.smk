rule evaluate:
    input:
        evaluated_files,
    output:
        table="results/evaluation.csv",
        page="results/evaluation.png",
    log:
        "logs/evaluate.log",
    benchmark:
        "benchmarks/evaluate.tsv"
    conda:
        "../../environment.yml"
    params:
        evaluations=dependencies.evaluations(CONFIG),
        signatures=label_signatures,
        version=VERSION,
    script:
        "../../scripts/evaluate.py"
