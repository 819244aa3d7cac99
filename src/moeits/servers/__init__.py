"""Plug-ins by which servers open checkpoints whose layers keep unequal numbers of experts; a file for each server.

A server imports its file only, and only where it is installed; no file imports a server outside functions.
"""
