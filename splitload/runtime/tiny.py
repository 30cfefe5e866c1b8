"""The smallest model: it gives its input `x`, one float32, back as `y`."""

# <ir_version: 7, opset_import: ["" : 13]> g (float[1] x) => (float[1] y) { y = Identity(x) }
TINY_MODEL = (
    b'\x08\x07:9\n\x12\n\x01x\x12\x01y"\x08Identity:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
