"""The data room: everything that runs inside a hospital. What a hospital audits is this folder and
datatokens/.
"""
