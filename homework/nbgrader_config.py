"""nbgrader's settings for these assignments; release.py copies this file into the course folder."""

c = get_config()  # noqa: F821, nbgrader defines it

c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("your turn")'}
c.ClearSolutions.text_stub = "*Your answer.*"
c.ExecutePreprocessor.timeout = 60  # seconds for a cell: an endless loop ends here
