//! The elements of one task: SwiGLU on the CPU.
//!
//! Invariant: the same bits on every path (see `ops::vector`).
//! Reference: the formulas in the operation's header.

use crate::ops::half_matrix::{filled, pack, rounded, unpack_group, GROUP, WORDS};
use crate::ops::vector::kernel;
use crate::ops::vector_exp::sigmoid;

kernel! {
    pub(super) fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }
}

kernel! {
    pub(super) fn backward_in_place(gate: &mut [f32], up: &mut [f32], dact: &mut [f32]) {
        for ((gate, up), dact) in gate.iter_mut().zip(up).zip(dact) {
            let (g, u, d) = (*gate, *up, *dact);
            let s = sigmoid(g);
            let silu = g * s;
            *gate = d * u * (s * (1.0 + g * (1.0 - s)));
            *up = d * silu;
            *dact = silu * u;
        }
    }
}

/// One group of the halved forward: activation, and gate and up rounded.
#[inline(always)]
fn forward_group(gate: &[f32; GROUP], up: &[f32; GROUP]) -> [[f32; GROUP]; 3] {
    let [mut out, mut gate_rounded, mut up_rounded] = [[0.0; GROUP]; 3];
    for i in 0..GROUP {
        let (gate, up) = (rounded(gate[i]), rounded(up[i]));
        out[i] = gate * sigmoid(gate) * up;
        (gate_rounded[i], up_rounded[i]) = (gate, up);
    }
    [out, gate_rounded, up_rounded]
}

kernel! {
    /// `forward` of the rounded values.
    pub(super) fn forward_rounding(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            let (gate, up) = (rounded(gate), rounded(up));
            *out = gate * sigmoid(gate) * up;
        }
    }
}

kernel! {
    /// `forward` of the rounded values, which are kept in `words` (gate, up).
    pub(super) fn forward_keeping(gate: &[f32], up: &[f32], out: &mut [f32], words: [&mut [f32]; 2]) {
        let [gate_words, up_words] = words;
        let (gate_words, up_words) = (gate_words.as_chunks_mut::<WORDS>().0, up_words.as_chunks_mut::<WORDS>().0);
        let (gates, gate_rest) = gate.as_chunks::<GROUP>();
        let (ups, up_rest) = up.as_chunks::<GROUP>();
        let (outs, out_rest) = out.as_chunks_mut::<GROUP>();
        let groups = outs.len();
        let words = gate_words.iter_mut().zip(up_words.iter_mut());
        for (((out, gate), up), (gate_words, up_words)) in outs.iter_mut().zip(gates).zip(ups).zip(words) {
            let [act, gate, up] = forward_group(gate, up);
            (*out, *gate_words, *up_words) = (act, pack(&gate), pack(&up));
        }
        if !out_rest.is_empty() {
            let [act, gate, up] = forward_group(&filled(gate_rest), &filled(up_rest));
            (gate_words[groups], up_words[groups]) = (pack(&gate), pack(&up));
            out_rest.copy_from_slice(&act[..out_rest.len()]);
        }
    }
}

/// One group of the halved backward: dgate, dup and the activation.
#[inline(always)]
fn backward_group(words: [&[f32; WORDS]; 2], dact: &[f32; GROUP]) -> [[f32; GROUP]; 3] {
    let (gate, up) = (unpack_group(words[0]), unpack_group(words[1]));
    let [mut dgate, mut dup, mut act] = [[0.0; GROUP]; 3];
    for i in 0..GROUP {
        let (g, u, d) = (gate[i], up[i], dact[i]);
        let s = sigmoid(g);
        let silu = g * s;
        dgate[i] = d * u * (s * (1.0 + g * (1.0 - s)));
        dup[i] = d * silu;
        act[i] = silu * u;
    }
    [dgate, dup, act]
}

kernel! {
    /// `backward_in_place` of kept values; `dact` becomes the activation, `gradients` (gate, up) are overwritten.
    pub(super) fn backward_kept(words: [&[f32]; 2], dact: &mut [f32], gradients: [&mut [f32]; 2]) {
        let (gate_words, up_words) = (words[0].as_chunks::<WORDS>().0, words[1].as_chunks::<WORDS>().0);
        let [dgate, dup] = gradients;
        let (dacts, dact_rest) = dact.as_chunks_mut::<GROUP>();
        let (dgates, dgate_rest) = dgate.as_chunks_mut::<GROUP>();
        let (dups, dup_rest) = dup.as_chunks_mut::<GROUP>();
        let groups = dacts.len();
        let words = gate_words.iter().zip(up_words);
        for (((dact, dgate), dup), (gate, up)) in dacts.iter_mut().zip(dgates).zip(dups).zip(words) {
            [*dgate, *dup, *dact] = backward_group([gate, up], dact);
        }
        if !dact_rest.is_empty() {
            let count = dact_rest.len();
            let results = backward_group([&gate_words[groups], &up_words[groups]], &filled(dact_rest));
            for (result, target) in results.iter().zip([dgate_rest, dup_rest, dact_rest]) {
                target.copy_from_slice(&result[..count]);
            }
        }
    }
}
