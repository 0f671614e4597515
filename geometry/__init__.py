"""The geometry of a pair of images: the one convention, written once and obeyed everywhere.

Convention:
    ``H_fix_to_mov`` is a 3 x 3 matrix that takes pixel coordinates of the *fixed* image to pixel coordinates of the
    *moving* image. Points are (x, y); the centre of the top-left pixel is (0, 0); x grows to the right, y downwards;
    a pixel spans half a unit to each side of its centre. Every matrix is named ``H_<from>_to_<to>`` and maps column
    vectors: ``point_to = H_from_to @ point_from``. Sizes are (height, width).

    To *resample* an image into another frame one needs the matrix from the frame of the output to the frame of the
    source: the moving image seen in the fixed frame is ``warp_image(moving, H_fix_to_mov, fixed_size)``.

Matrices are (3, 3) numpy float64 where transforms are estimated and scored, and (B, 3, 3) torch tensors in training;
:func:`geometry.points.warp_points` and :func:`geometry.matrices.compose` take either.
"""
