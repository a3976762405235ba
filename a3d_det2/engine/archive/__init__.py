"""Whole archives of CTs: from a manifest to a folder of results for each, whatever is killed on the way.

    manifest     the rows of archive.csv
    scanning     folders -> a manifest, by headers alone
    store        the output folder: one folder an item, renamed into place when it is complete
    reading      processes that read volumes ahead of the model
    work         items -> records, in a process that has a model
    prediction   what is done with an item: read, predict, write
    local        such processes on this machine
    ray_pool     such processes as actors of Ray
    pending      which items are left to do
    running      all of it, with a bar
    merging      the results as two tables
    commands     a3d-archive

What runs the processes imports no torch: it holds no model and no volume.
"""
