"""Graded homework: the instructor's sources, the command that makes the student version, and the grader.

docs/instructors.md says how a course runs it. Nothing here is part of the installed package.
"""
