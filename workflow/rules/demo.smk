rule download:
    output:
        "data/{file}",
    log:
        "logs/download/{file}.log",
    wildcard_constraints:
        file="|".join(Path(name).name.replace(".", "[.]") for name in DOWNLOADS),
    params:
        download=download_of,
    script:
        "../../scripts/download.py"
