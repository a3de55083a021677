//! `y[N] = w[N,K] · x[K]` of one row, in pieces: decoding shares the rows of a weight out among threads that all work on
//! the same token, so neither the sharing nor the waiting is done here.
//!
//! Invariant: a sum depends on its row alone. It equals that of `matmul_nt` with one row of x, but for NF4 codes on paths
//! that have something better for a row alone ([`Kernels::codes_alone`]).

use super::gemv;
use super::gemv_half;
use super::gemv_nf4::{Fused, Input, PIECE};
use super::kernel::{Dot, Kernels};
use super::pack_dense::Source;
use super::row_tables::RowTables;
use super::WeightRef;
use crate::device::{cpu_path, Compute, CpuPath};
use crate::quant::Nf4Matrix;
use std::ops::Range;

/// Forms of x.
const FORMS: usize = 3;

/// A weight to be multiplied with single rows of x.
#[derive(Clone, Copy)]
pub struct RowProduct<'a> {
    source: Source<'a>,
    kernels: &'static Kernels,
    fused: Option<Fused<'a>>,
    tables: Option<(&'a Nf4Matrix, &'a RowTables)>,
}

/// A row of x in the order and format that weights want it in: `[0]` plain, `[1]` ordered for NF4 codes, `[2]` made for
/// them. Empty until wanted.
#[derive(Default)]
pub struct RowInput {
    words: [Vec<f32>; FORMS],
    ordered: Vec<f32>,
    len: usize,
}

impl RowInput {
    /// Takes in another row; the weights that it will be multiplied with are in `products`.
    pub fn load<'a>(&mut self, x: &[f32], products: impl Iterator<Item = RowProduct<'a>>) {
        self.len = x.len();
        let mut loaded = [false; FORMS];
        for product in products {
            let form = product.form();
            if !std::mem::replace(&mut loaded[form], true) {
                self.load_form(x, &product);
            }
        }
    }

    fn load_form(&mut self, x: &[f32], product: &RowProduct<'_>) {
        let RowInput { words, ordered, .. } = self;
        let words = &mut words[product.form()];
        // Whole vectors may be read, and what lies beyond x must be zero.
        words.clear();
        words.resize(product.words(x.len()) + 16, 0.0);
        ordered.resize(x.len(), 0.0);
        product.source.take_in(product.kernels, product.input(), x, ordered, words);
    }
}

impl<'a> RowProduct<'a> {
    /// The product with `weight`.
    pub fn new(weight: WeightRef<'a>, compute: Compute) -> RowProduct<'a> {
        RowProduct::on(cpu_path(), weight, compute)
    }

    /// [`RowProduct::new`] on one kernel path, which the machine must have.
    pub(super) fn on(path: CpuPath, weight: WeightRef<'a>, compute: Compute) -> RowProduct<'a> {
        weight.check();
        let source = Source { weight, transposed: true, compute, path };
        let kernels = Kernels::of(source.path, compute);
        let fused = match weight {
            WeightRef::Nf4(matrix) => {
                let fused = |functions| Fused::new(&source, functions, matrix, 1);
                fused(kernels.codes_alone).or_else(|| fused(kernels.codes))
            }
            _ => None,
        };
        RowProduct { source, kernels, fused, tables: None }
    }

    /// The same with what is kept of the scales of its weight, if there is something.
    pub fn reading(self, tables: Option<&'a RowTables>) -> RowProduct<'a> {
        let (Some(tables), WeightRef::Nf4(matrix)) = (tables, self.source.weight) else { return self };
        match tables.scales() {
            Some(scales) => RowProduct { fused: self.fused.map(|fused| fused.with(scales)), ..self },
            // Words are for the kernels of this path.
            None if self.source.compute == Compute::F32 && self.source.path == CpuPath::Avx2 => {
                RowProduct { tables: Some((matrix, tables)), ..self }
            }
            None => self,
        }
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.source.weight.rows()
    }

    /// Bytes of a row, about.
    pub fn row_bytes(&self) -> usize {
        gemv::row_bytes(self.source.weight)
    }

    /// Words of a row of x in its form.
    fn words(&self, len: usize) -> usize {
        match self.input() {
            Some(Input::Made { words, .. }) => len / PIECE * words,
            _ => len.div_ceil(self.kernels.per_word()).next_multiple_of(16),
        }
    }

    fn input(&self) -> Option<Input> {
        let of_tables = self.tables.and_then(|(_, tables)| tables.input());
        of_tables.or(self.fused.map(|fused| fused.input()))
    }

    fn form(&self) -> usize {
        match self.input() {
            None => 0,
            Some(Input::Ordered(_)) => 1,
            Some(Input::Made { .. }) => 2,
        }
    }

    /// Hands `put` each row of a range with its sum. `x` must have been loaded for this product.
    pub fn sums(&self, x: &RowInput, rows: Range<usize>, put: &mut dyn FnMut(usize, f32)) {
        assert!(x.len == self.source.weight.cols() && rows.end <= self.rows());
        let words = &x.words[self.form()];
        assert!(words.len() >= self.words(x.len));
        let dot = Dot { a: std::ptr::null(), b: words.as_ptr(), b_row: 0, words: 0 };
        let mut each = |first: usize, _: Range<usize>, sums: &[[f32; super::kernel::MOST_ROWS]]| {
            (first..).zip(sums).for_each(|(row, sums)| put(row, sums[0]));
        };
        if let Some((matrix, tables)) = self.tables {
            // SAFETY: x is as the kernel of this path wants it.
            return unsafe { tables.sums(matrix, words.as_ptr(), rows, put) };
        }
        match &self.fused {
            // SAFETY: made for this weight and one row of x, which is there as it is wanted.
            Some(fused) => unsafe { fused.sums(rows, dot, &mut each) },
            None if gemv_half::applies(&self.source, self.kernels) => {
                for row in rows {
                    let sum = gemv_half::product(self.source.path, self.source.weight, row, &words[..x.len]);
                    put(row, sum);
                }
            }
            None => gemv::sums(&self.source, self.kernels, (rows, 1), dot, &mut each),
        }
    }
}
