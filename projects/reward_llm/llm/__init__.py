"""Language models behind one method: live, replayed, scripted, or answered through files.

`config.make_client` builds what a search asks, `ask.ask_all` asks it many things at once. Only
`openai_client` needs the package openai, and only it imports it.
"""
