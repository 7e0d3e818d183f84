"""The mesh renderer: gives the face of a template another mouth.

basis       how a face moves with opening and width
tracks      the face of each person in a template through time
seam        the line between shut lips
warp        triangles → displacement fields
compose     displacement fields → pixels, light, layers
teeth, interior  the inside of a mouth, drawn
canvas, palette  what it is drawn on, and in which colours
inside      what is seen between lips that were shut, parted or open before they moved
own_inside  what an open mouth of the template shows itself
mouths, plan     the template's own mouths, and which one when
transplant  laying them into a frame
between, rows    laying what is between lips between others; its teeth stay as high as they are
calibrate   what a landmarker sees of what was drawn
materials, prepare  all that is measured in a template's pixels, in one pass
renderer    one person
cast        all people of a template
"""
