def write_search_report(workdir, task):
    return workdir
