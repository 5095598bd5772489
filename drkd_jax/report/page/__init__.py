"""``report.html``: one file that shows finished runs beside each other, without network or script.

``runs`` reads work folders, ``scores`` and ``changes`` compare what was found, ``charts``,
``gallery`` and ``sections`` turn that into HTML by way of ``markup``, ``write`` puts it together.
"""
