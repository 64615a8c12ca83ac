"""Attacks on encodings: each gets an ``AttackerView`` and returns an ``AttackResult``.

A figure of an attack is a lower bound on what leaks: a better attacker finds more.
"""
