"""Damaged inputs of every kind, made from seeds, and a judge of what becomes of them.

``seeds`` makes whole inputs, ``mutate`` damages them, ``cases`` joins both to numbered cases,
``child`` runs cases in a process of its own, ``judge`` watches it and says what is wrong.
``test_attacks.py`` is the short run, ``benchmarks/fuzz.py`` the long one.
"""
