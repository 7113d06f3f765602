"""What a verb's summary is shown as: a file a verb, each with functions (folder, run, summary) -> blocks."""
