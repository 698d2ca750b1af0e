"""Sources of adapters: this disk, and the Hub.

Each module offers one ``SOURCE`` record. A uri goes to the first source that claims it, and this disk
comes first: a name that is both a folder here and a repository on the Hub is the folder.
"""
