"""Batch jobs: images of all prompts in a file, resumable after any interruption.

from runtime import Job, PromptFile

for entry in Job(PromptFile("prompts.csv"), "my-bundle", "images"):
    print(entry["file"] or entry["error"])

In img2dataset's words: `prompts` is the reader, `shards` the unit of work, `writers` the output
formats, `worker` completes one shard, `executors` and `ray` distribute shards, `storage` is a local
folder or an object store, `journal` and `state` are the records on disk, `job` leads.
"""
