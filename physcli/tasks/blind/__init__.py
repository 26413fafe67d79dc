"""The blind study: a page on which people compare two videos at a time without knowing whose they are, and its votes.

schedule.py   which rater sees what, in which order, on which side
key.py        what the page's ids stand for, and the rules registered with it
page.py       `physcli compare --blind`
ballots.py    reading what raters sent back
votes.py      `physcli eval votes`
report.py     its report.html
"""
