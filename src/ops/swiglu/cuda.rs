//! The gated activation on a GPU; see `swiglu.cu`.

use crate::error::Result;
use crate::ops::gpu::Buffer;
use half::bf16;

/// Pairs of elements, which a thread takes at once.
fn pairs(buffers: [&Buffer<bf16>; 3]) -> usize {
    let count = buffers[0].len();
    assert!(count.is_multiple_of(2) && buffers.iter().all(|buffer| buffer.len() == count));
    count / 2
}

/// `activated = silu(gate) ∘ up`; same shapes.
pub fn forward(gate: &Buffer<bf16>, up: &Buffer<bf16>, activated: &Buffer<bf16>) -> Result<()> {
    let pairs = pairs([gate, up, activated]);
    let arguments = [gate.pointer(), up.pointer(), activated.pointer(), (pairs as i64).into()];
    gate.gpu().each("swiglu_forward", pairs, &arguments)
}

/// `gate` and `up` become their gradients; `activated` holds the activation's gradient and becomes the activation.
pub fn backward_in_place(gate: &Buffer<bf16>, up: &Buffer<bf16>, activated: &Buffer<bf16>) -> Result<()> {
    let pairs = pairs([gate, up, activated]);
    let arguments = [gate.pointer(), up.pointer(), activated.pointer(), (pairs as i64).into()];
    gate.gpu().each("swiglu_backward", pairs, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::swiglu as on_cpu;
    use crate::ops::testing::{assert_halves, emulated_gpu, halves, normal, through_bf16};
    use crate::ops::Arena;

    #[test]
    fn equals_the_cpu_forward_and_backward() {
        let Some(gpu) = emulated_gpu() else { return };
        for (rows, cols) in [(1, 2), (3, 172), (40, 66)] {
            let inputs = ["gate", "up", "gradient"].map(|label| through_bf16(&normal(label, rows * cols)));
            let [gate, up, activated] =
                inputs.each_ref().map(|values| gpu.upload(&halves(values), rows, cols).unwrap());
            let arena = Arena::new();
            let [mut cpu_gate, mut cpu_up, mut gradient] = inputs.map(|values| {
                let mut matrix = arena.matrix(rows, cols);
                matrix.copy_from_slice(&values);
                matrix
            });
            let out = gpu.buffer(rows, cols).unwrap();
            forward(&gate, &up, &out).unwrap();
            let mut expected = arena.matrix(rows, cols);
            on_cpu::forward(&cpu_gate, &cpu_up, &mut expected);
            assert_halves("activated", &out.read().unwrap(), &expected, 1e-6);

            backward_in_place(&gate, &up, &activated).unwrap();
            on_cpu::backward_in_place(&mut cpu_gate, &mut cpu_up, &mut gradient);
            assert_halves("dgate", &gate.read().unwrap(), &cpu_gate, 1e-6);
            assert_halves("dup", &up.read().unwrap(), &cpu_up, 1e-6);
            assert_halves("activated again", &activated.read().unwrap(), &gradient, 1e-6);
        }
    }
}
