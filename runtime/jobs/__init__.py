"""Batch jobs: lists of prompts to images, which survive anything and go on where they were.

from runtime import Job, PromptFile

for entry in Job(PromptFile(Path("prompts.csv")), "my-bundle", "images"):
    print(entry["file"] or entry["error"])
"""
