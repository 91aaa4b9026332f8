"""Renderer of furnished rooms with exact labels; ``prepare.py`` beside this folder is its command line.

Conventions, everywhere in this folder: metres; a room is the box ``[0, X] x [0, Y] x [0, Z]`` with z up;
a model stands in its own frame with x to the right, y to the back, z up and the origin at the centre of
its footprint; colours are linear RGB unless a name says sRGB; every random draw comes from a generator that
is passed in, so a room is a function of its seed.

How these rooms differ from the embedded ones. Those came from an earlier script that no longer exists: the
files, encodings, camera model, classes and models are the same, the rooms are not, and no seed brings one of
them back. Side by side they look of one family. In two samples of 30 the mean grey value was 121 and 128
(embedded: 129), its deviation 43 and 47 (45), and walls, floors and windows took their shares of the pixels
within about three points; chairs, furniture and tables took somewhat more here, beds, books and pictures
somewhat less. Known limits: what is transparent is drawn opaque; no mirrors, gloss or people;
light comes from one lamp, the windows and the sun only, with one traced bounce scaled up for the later ones;
a window's view is a flat picture whose brightness is set relative to the room; shadows are softened by the
filter; seats stand beside tables, never under them; models of televisions and wall televisions in the table
are not used, televisions are procedural. Floats may round differently on other processors and library
versions: bytes are promised for one machine, whatever the number of workers.
"""
