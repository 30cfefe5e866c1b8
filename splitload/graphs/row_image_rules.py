"""Rules of operators on images: which rows of an image the rows of the next one need."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from splitload.graphs.row_windows import SAME, Need, Operation, Rows, Window, first_input

_MOST_RATIO = 64  # of rows that a resize makes of rows; beyond that whole images would be needed to be exact


def kernel_of(operation: Operation, axis: int) -> tuple[int, int, int, int]:
    """Return size, stride, dilation of a kernel and rows of padding before the image, along an axis of it.

    Args:
        operation: A convolution or a pooling.
        axis: Of the image, counted with batch and channels.
    """
    shape, out = operation.inputs[0], operation.outputs[0]
    assert shape is not None  # noqa: S101
    assert out is not None  # noqa: S101
    at, values = axis - 2, operation.attributes
    sizes = values.get("kernel_shape") or (operation.inputs[1] or ())[2:]
    size, stride = int(sizes[at]), int((values.get("strides") or [1] * len(sizes))[at])
    dilation = int((values.get("dilations") or [1] * len(sizes))[at])
    how = values.get("auto_pad", b"NOTSET")
    if how in (b"NOTSET", b""):
        before = int((values.get("pads") or [0] * 2 * len(sizes))[at])
    elif how == b"VALID":
        before = 0
    else:
        total = max((out[axis] - 1) * stride + dilation * (size - 1) + 1 - shape[axis], 0)
        before = total // 2 if how == b"SAME_UPPER" else total - total // 2
    return size, stride, dilation, before


def windowed(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows of a convolution's or a pooling's image need those under the kernel; batches need themselves."""
    axis = axes.get(0)
    if axis is None or axis == 1 or any(at not in (0, 3) for at in axes):
        return None
    if len(operation.outputs) > 1 and operation.outputs[1] is not None:  # places in the whole image
        return None
    window = SAME
    if axis > 1:
        size, stride, dilation, before = kernel_of(operation, axis)
        window = Window(stride, first=-before, last=dilation * (size - 1) - before)
        if not _touches_image(operation, axis, window):
            return None
    needs = {0: Need(axis, window)}
    if operation.is_given(3):  # what is added to the result
        if axes.get(3, axis) != axis:
            return None
        needs[3] = Need(axis)
    return Rows(axis, needs)


def _touches_image(operation: Operation, axis: int, window: Window) -> bool:
    """Return whether each place of a kernel has a row of the image, and none reaches where padding ends as well.

    A mean that counts padding does not count what `ceil_mode` adds beyond it.
    """
    size, out = (operation.inputs[0] or ())[axis], (operation.outputs[0] or ())[axis]
    first, last = (out - 1) * window.step + window.first, (out - 1) * window.step + window.last
    values = operation.attributes
    if values.get("ceil_mode") and values.get("count_include_pad"):
        pads = values.get("pads") or [0] * 2 * (len(operation.inputs[0] or ()) - 2)
        if last >= size + pads[axis - 2 + len(pads) // 2]:
            return False
    return window.last >= 0 and first < size


def transposed(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows of a transposed convolution need those whose kernels reach them."""
    if set(axes) != {0} or (axis := axes[0]) == 1:
        return None
    if axis == 0:
        return Rows(0, {0: Need(0)})
    values = operation.attributes
    if values.get("output_shape") or values.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        return None
    size, stride, dilation, before = kernel_of(operation, axis)
    if stride > dilation * (size - 1) + 1:  # between rows are some that none reaches
        return None
    window = Window(1, stride, before - dilation * (size - 1) + stride - 1, before)
    return Rows(axis, {0: Need(axis, window)})


def resize(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows of a resized image need those around the places that they come from."""
    shape, out = operation.inputs[0], operation.outputs[0]
    if set(axes) != {0} or shape is None or out is None:
        return None
    axis, values = axes[0], operation.attributes
    how = values.get("coordinate_transformation_mode", b"half_pixel")
    policy = values.get("keep_aspect_ratio_policy", b"stretch")
    if values.get("antialias") or values.get("axes") or how == b"tf_crop_and_resize" or policy != b"stretch":
        return None
    mode = values.get("mode", b"nearest")
    if axis < 2 and (out[axis] != shape[axis] or mode == b"cubic"):
        return None
    scales = operation.constants.get(2)
    is_computed = operation.is_given(2) and scales is None and operation.inputs[2] != (0,)
    if operation.opset < 11 or is_computed:  # what Resize was before took scales elsewhere
        return None
    if scales is not None and scales.size and float(scales[axis]) * shape[axis] != out[axis]:
        return None
    if out[axis] == shape[axis]:
        return Rows(axis, {0: Need(axis)})
    ratio = Fraction(shape[axis], out[axis])
    rows, made = ratio.numerator, ratio.denominator
    if max(rows, made) > _MOST_RATIO or how not in (b"half_pixel", b"pytorch_half_pixel", b"asymmetric"):
        return None
    if how == b"pytorch_half_pixel" and made == 1:  # which treats images of one row otherwise
        return None
    before, behind = {b"nearest": (1, 1), b"linear": (1, 2), b"cubic": (2, 3)}[mode]
    if how == b"asymmetric":
        return Rows(axis, {0: Need(axis, Window(rows, made, -before * made, behind * made, rows))})
    first = rows - made  # the place of row o is ((2 o + 1) rows - made) / (2 made)
    reach = 2 * made
    window = Window(2 * rows, reach, first - before * reach, first + behind * reach, rows)
    return Rows(axis, {0: Need(axis, window)})


def upsample_blocks(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """As `_resize`, with whole factors and by the attributes that the operator on blocks has."""
    if set(axes) != {0} or axes[0] != 2 or operation.attributes.get("mode", b"nearest") != b"nearest":
        return None
    factor = int(operation.attributes["scales"][2])
    return Rows(2, {0: Need(2, Window(1, factor))})


def batch_norm(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """What treats each pixel of a channel alike: channels cannot be divided."""
    return first_input(operation, axes, axes.get(0) != 1 and not operation.attributes.get("training_mode"))


def batch_alone(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """What looks at whole images: only those of a batch are apart."""
    return first_input(operation, axes, axes.get(0) == 0)


def over_images(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """What looks at whole channels of images."""
    return first_input(operation, axes, axes.get(0, 2) < 2)


def depth_to_space(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows become as many more as the blocks of channels have."""
    if set(axes) != {0} or axes[0] == 1:
        return None
    factor = int(operation.attributes["blocksize"]) if axes[0] > 1 else 1
    return Rows(axes[0], {0: Need(axes[0], Window(1, factor))})


def space_to_depth(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """As many rows as the blocks have become one."""
    if set(axes) != {0} or axes[0] == 1:
        return None
    factor = int(operation.attributes["blocksize"]) if axes[0] > 1 else 1
    return Rows(axes[0], {0: Need(axes[0], Window(factor, last=factor - 1))})


def into_blocks(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows of an image need themselves; with channels last they lie along another axis."""
    is_last = bool(operation.attributes.get("channels_last"))
    if set(axes) != {0} or axes[0] == (3 if is_last else 1):
        return None
    return Rows(axes[0] + (1 if is_last and axes[0] > 0 else 0), {0: Need(axes[0])})


def out_of_blocks(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """As `into_blocks`, the other way round."""
    if set(axes) != {0} or axes[0] == 1:
        return None
    is_last = bool(operation.attributes.get("channels_last"))
    return Rows(axes[0] - (1 if is_last and axes[0] > 0 else 0), {0: Need(axes[0])})
