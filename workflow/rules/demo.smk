rule download:
    output:
        "data/{file}",
    log:
        "logs/download/{file}.log",
    wildcard_constraints:
        file="|".join(Path(name).name.replace(".", "[.]") for name in DOWNLOADS),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        download=download_of,
    script:
        "../../scripts/download.py"


rule demo:
    input:
        stitched=rules.all.input,
        labels="data/nuclei_label.tif",
    log:
        "logs/demo.log",
    localrule: True
    conda:
        "../../environment.yml"
    script:
        "../../scripts/demo.py"
