# Snakemake looks here first. The workflow is workflow/Snakefile; this file only lets `snakemake`
# without arguments find it, and names its default target, which an include does not do.


include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
