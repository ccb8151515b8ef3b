"""The commands of a buyer and of a contributor, one file for each group. They parse and print;
what is decided is decided in datahub/buyer/.
"""
