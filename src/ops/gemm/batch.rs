//! Products that belong together: operands converted once for all of them, terms that add up in one pass over their
//! result, and one wait for all threads instead of one for each product.
//!
//! An element of a result is summed exactly as the single products would: term after term, each in the order of its
//! depth. So a batch gives the bits of [`matmul_nt`](super::matmul_nt) and its kin called one after the other.

use super::driver::{self, Group, Term, Use};
use super::kernel::Kernels;
use super::operand::{self, Left, Rows, Target};
use super::pack_dense::Source;
use super::scratch::Scratch;
use super::{turned, WeightRef};
use crate::device::{cpu_path, Compute, CpuPath};
use crate::ops::matrix::{MatMut, MatRef};
use std::ops::Index;

/// A left operand in the form that the kernels read, for any number of products.
pub struct Prepared<'a> {
    left: Left<'a>,
    rows: Rows,
}

/// Left operands, in the order in which they were given.
pub struct Prepareds<'a> {
    items: Vec<Prepared<'a>>,
    /// Where those lie that had to be converted.
    _memory: Option<Scratch>,
}

impl<'a> Index<usize> for Prepareds<'a> {
    type Output = Prepared<'a>;
    fn index(&self, index: usize) -> &Prepared<'a> {
        &self.items[index]
    }
}

/// Converts `[T, K]` matrices to left operands: their rows, or their columns where `transposed`.
pub fn prepare<'a>(matrices: &[MatRef<'a>], transposed: bool, compute: Compute) -> Prepareds<'a> {
    prepare_on(cpu_path(), matrices, transposed, compute)
}

pub(super) fn prepare_on<'a>(
    path: CpuPath,
    matrices: &[MatRef<'a>],
    transposed: bool,
    compute: Compute,
) -> Prepareds<'a> {
    matrices.iter().for_each(|matrix| WeightRef::F32(*matrix).check());
    let lefts: Vec<Left<'a>> =
        matrices.iter().map(|matrix| Left { matrix: *matrix, transposed, compute, path }).collect();
    let values: usize = matrices.iter().map(|matrix| matrix.rows * matrix.cols).sum();
    // Converting a value takes about as long as sixteen multiply-adds.
    let threads = driver::threads_for(16 * values);
    let (rows, memory) = operand::prepare(Kernels::of(path, compute), &lefts, threads);
    let items = lefts.into_iter().zip(rows).map(|(left, rows)| Prepared { left, rows });
    Prepareds { items: items.collect(), _memory: memory }
}

/// The right operand of a product.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    weight: WeightRef<'a>,
    transposed: bool,
}

impl<'a> Right<'a> {
    /// `w [N,K]ᵀ`: the forward form.
    pub fn transposed(weight: WeightRef<'a>) -> Right<'a> {
        Right { weight, transposed: true }
    }

    /// `w [K,N]` as it is: the form of input gradients and of parameter gradients.
    pub fn plain(weight: WeightRef<'a>) -> Right<'a> {
        Right { weight, transposed: false }
    }

    fn depth(&self) -> usize {
        if self.transposed {
            self.weight.cols()
        } else {
            self.weight.rows()
        }
    }

    fn columns(&self) -> usize {
        if self.transposed {
            self.weight.rows()
        } else {
            self.weight.cols()
        }
    }
}

/// A result with the terms that make it up.
struct Sum<'a> {
    target: Target,
    rows: usize,
    columns: usize,
    stride: usize,
    accumulate: bool,
    terms: Vec<(&'a Prepared<'a>, Right<'a>, f32)>,
}

/// Products to run together. Results are borrowed exclusively until [`Batch::run`], so no two can overlap.
pub struct Batch<'a> {
    compute: Compute,
    path: CpuPath,
    /// Each entry shares its right operands.
    sums: Vec<Vec<Sum<'a>>>,
    turned: Vec<Turned<'a>>,
}

/// A product whose transpose is wanted.
struct Turned<'a> {
    left: &'a Prepared<'a>,
    right: Right<'a>,
    alpha: f32,
    target: MatMut<'a>,
    accumulate: bool,
}

impl<'a> Batch<'a> {
    /// Nothing yet.
    pub fn new(compute: Compute) -> Batch<'a> {
        Batch::on(cpu_path(), compute)
    }

    pub(super) fn on(path: CpuPath, compute: Compute) -> Batch<'a> {
        Batch { compute, path, sums: Vec::new(), turned: Vec::new() }
    }

    /// `target (+)= Σ alpha · left · right` over the terms; at least one.
    pub fn sum(&mut self, target: MatMut<'a>, accumulate: bool, terms: Vec<(&'a Prepared<'a>, Right<'a>, f32)>) {
        let sum = self.checked(target, accumulate, terms);
        self.sums.push(vec![sum]);
    }

    /// `targetᵢ (+)= alphaᵢ · leftᵢ · right`: one right operand, packed once for all.
    pub fn share(&mut self, right: Right<'a>, accumulate: bool, uses: Vec<(&'a Prepared<'a>, MatMut<'a>, f32)>) {
        let sums =
            uses.into_iter().map(|(left, target, alpha)| self.checked(target, accumulate, vec![(left, right, alpha)]));
        let sums: Vec<Sum<'a>> = sums.collect();
        if !sums.is_empty() {
            self.sums.push(sums);
        }
    }

    /// `target (+)= (alpha · left · right)ᵀ`: for a narrow left and a wide right operand.
    pub fn turned(
        &mut self,
        target: MatMut<'a>,
        accumulate: bool,
        (left, right, alpha): (&'a Prepared<'a>, Right<'a>, f32),
    ) {
        super::check(target.as_ref(), &target);
        assert!(left.left.rows() == target.cols && right.columns() == target.rows);
        self.turned.push(Turned { left, right, alpha, target, accumulate });
    }

    fn checked(&self, target: MatMut<'_>, accumulate: bool, terms: Vec<(&'a Prepared<'a>, Right<'a>, f32)>) -> Sum<'a> {
        super::check(target.as_ref(), &target);
        assert!(!terms.is_empty(), "a product without terms");
        for (left, right, _) in &terms {
            right.weight.check();
            assert!(left.left.path == self.path && left.left.compute == self.compute);
            assert!(left.left.rows() == target.rows && right.columns() == target.cols);
            assert!(left.left.depth() == right.depth());
        }
        let (rows, columns, stride) = (target.rows, target.cols, target.stride);
        Sum { target: Target(target.data.as_mut_ptr()), rows, columns, stride, accumulate, terms }
    }

    /// Runs all products.
    pub fn run(self) {
        let sizes: Vec<usize> = self.turned.iter().map(|one| one.target.rows * one.target.cols).collect();
        let total: usize = sizes.iter().sum();
        let mut memory = (total > 0).then(|| Scratch::take(total));
        let mut rest = memory.as_mut().map_or(&mut [][..], |memory| &mut memory.words()[..total]);
        let mut products = Vec::with_capacity(sizes.len());
        for size in sizes {
            let (product, tail) = std::mem::take(&mut rest).split_at_mut(size);
            products.push(product);
            rest = tail;
        }
        let extra = self.turned.iter().zip(&mut products).map(|(one, product)| {
            let target = MatMut::new(product, one.target.cols, one.target.rows);
            vec![self.checked(target, false, vec![(one.left, one.right, one.alpha)])]
        });
        let extra: Vec<Vec<Sum<'_>>> = extra.collect();
        self.run_sums(self.sums.iter().chain(&extra));
        drop(extra);
        for (Turned { target, accumulate, .. }, product) in self.turned.into_iter().zip(products) {
            let product = MatRef::new(product, target.cols, target.rows);
            turned::add_transposed(self.path, product, target, accumulate);
        }
    }

    fn run_sums<'s>(&self, sums: impl Iterator<Item = &'s Vec<Sum<'a>>>)
    where
        'a: 's,
    {
        let Batch { compute, path, .. } = *self;
        let kernels = Kernels::of(path, compute);
        let groups: Vec<Group<'_>> = sums
            .filter(|sums| sums[0].rows > 0 && sums[0].columns > 0)
            .map(|sums| {
                // Sums that share a right operand have one term each.
                let terms = sums[0].terms.iter().enumerate().map(|(index, (_, right, _))| {
                    let uses = sums.iter().map(|sum| {
                        let (left, _, alpha) = sum.terms[index];
                        let accumulate = sum.accumulate || index > 0;
                        let (rows, target, stride) = (sum.rows, sum.target, sum.stride);
                        Use { left: &left.rows, rows, target, stride, alpha, accumulate }
                    });
                    let source = Source { weight: right.weight, transposed: right.transposed, compute, path };
                    Term { source, depth: right.depth(), uses: uses.collect() }
                });
                Group { columns: sums[0].columns, terms: terms.collect() }
            })
            .collect();
        driver::run_groups(kernels, &groups);
    }
}
