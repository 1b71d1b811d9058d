rule download:
    output:
        touch(receipt_of("{file}")),
    log:
        "logs/download/{file}.log",
    wildcard_constraints:
        file="|".join(Path(name).name.replace(".", "[.]") for name in DOWNLOADS),
    localrule: True
    conda:
        "../../environment.yml"
    params:
        target=target_of,
        record=record_of,
        download=download_of,
        repairs=download_repairs,
    script:
        "../../scripts/download.py"


LABELS = "demo-data/nuclei_label.tif"  # of the image `stack`


rule demo:
    input:
        stitched=rules.all.input,
        labels=files_of(LABELS),
    log:
        "logs/demo.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        labels=LABELS,
    script:
        "../../scripts/demo.py"
