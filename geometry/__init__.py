"""Geometry of an image pair. This docstring defines the one convention of the whole project.

Convention:
    Points:
        (x, y) in pixels; x grows to the right, y downwards. The centre of the top-left pixel is
        (0, 0), so an image covers -0.5 <= x <= width - 0.5.
    Sizes:
        (height, width) in pixels.
    Matrices:
        ``H_<from>_to_<to>``, 3 x 3, maps column vectors in homogeneous pixel coordinates:
        ``point_to = H_from_to @ point_from``. Chains are read from right to left;
        :func:`geometry.matrices.compose` takes them in the order in which they act.
    Registration result:
        ``H_fix_to_mov`` maps pixels of the *fixed* image to pixels of the *moving* image. The same
        direction holds for every :class:`geometry.transforms.Transform`.
    Resampling:
        To resample an image into another frame, use the matrix from the frame of the output to
        the frame of the source (backward warping). The moving image in the fixed frame is
        ``warp_image(moving, H_fix_to_mov, fixed_size)``: no inversion.
    Resizing:
        The outer borders of the images coincide, as in OpenCV, PIL and torch with
        ``align_corners=False``; see :func:`geometry.matrices.resize_matrix`.
    Arrays:
        Matrices are (3, 3) numpy float64 where transforms are estimated and evaluated, and
        (B, 3, 3) torch tensors in training. :func:`geometry.points.warp_points` and
        :func:`geometry.matrices.compose` take either.
"""
