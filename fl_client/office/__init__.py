"""Where people at the hospital look at their node and decide: its commands, a page on this machine
alone, papers.
"""
