//! Checkpoints on a healthy disk, and the run that the other tests of this module save.

use super::*;
use crate::ops::{Gradients, Param, ParamKind};
use crate::optim::{LearningRates, OptimizerConfig, OptimizerKind};
use serde_json::json;

/// Parameters, optimizer and state after some steps; `number` makes two of them differ in every tensor.
pub struct Sample {
    pub params: ParamStore,
    pub optimizer: Box<dyn Optimizer>,
    pub state: RunState,
}

impl Sample {
    pub fn fresh(kind: OptimizerKind) -> Sample {
        let mut params = ParamStore::default();
        let shapes = [
            ("a", ParamKind::LoraA, 4, 9),
            ("b", ParamKind::LoraB, 9, 4),
            ("w", ParamKind::Weight, 70, 64),
            ("n", ParamKind::Norm, 1, 5),
        ];
        for (name, kind, rows, cols) in shapes {
            let value = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
            params.add(Param { name: format!("layer.{name}"), kind, rows, cols, value });
        }
        let optimizer = kind.build(&OptimizerConfig::default(), &params);
        Sample { params, optimizer, state: RunState::default() }
    }

    pub fn after(steps: u64, kind: OptimizerKind) -> Sample {
        let mut sample = Sample::fresh(kind);
        for step in 0..steps {
            sample.step(step);
        }
        sample
    }

    pub fn step(&mut self, step: u64) {
        let mut gradients = Gradients::zeros(&self.params);
        for (index, gradient) in gradients.iter_mut().enumerate() {
            for (i, value) in gradient.iter_mut().enumerate() {
                *value = ((i as f32) * 0.1 + step as f32 + index as f32).cos();
            }
        }
        self.optimizer.step(&mut self.params, &gradients, &LearningRates::uniform(1e-3), 1.0);
        let state = &mut self.state;
        state.step = step + 1;
        state.total_steps = 100;
        state.tokens += 512;
        state.seed = u64::MAX;
        state.cursor = json!({"epoch": 1, "index": step});
        state.config = "name = \"città\"\n".into();
        state.log_bytes += 77;
        state.skips = Skips { total: 3, in_a_row: 1 };
        state.spike.window.push_back(1.0 / (step + 3) as f64);
        state.seconds += 0.1;
    }

    pub fn save(&self, checkpoints: &Checkpoints) -> Result<PathBuf> {
        let Sample { state, params, optimizer } = self;
        let snapshot = Snapshot { state, params, optimizer: &**optimizer, score: None, made_by: Maker::this(None) };
        checkpoints.save(&snapshot, &mut |folder| folder.write("README", &mut |file| file.write_all(b"extra")))
    }

    /// The names and bits of everything.
    pub fn bits(&self) -> Vec<(String, Vec<u32>)> {
        let params = self.params.iter().map(|param| (param.name.clone(), StateValues::F32(&param.value[..])));
        let state = self.optimizer.state();
        let state = state.iter().map(|tensor| (tensor.name.clone(), tensor.values.clone()));
        let bits = |values: StateValues<&[f32], &[u8]>| match values {
            StateValues::F32(values) => values.iter().map(|v| v.to_bits()).collect(),
            StateValues::U8(values) => values.iter().map(|&v| u32::from(v)).collect(),
        };
        params.chain(state).map(|(name, values)| (name, bits(values))).collect()
    }
}

pub fn checkpoints(folder: &Path, last: usize, best: usize) -> Checkpoints {
    Checkpoints::open(&folder.join("checkpoints"), KeepPolicy { last, best }).unwrap()
}

#[test]
fn everything_comes_back_bit_for_bit() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8] {
        let place = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(place.path(), 2, 0);
        let saved = Sample::after(3, kind);
        saved.save(&checkpoints).unwrap();
        let mut other = Sample::fresh(kind);
        let restored = checkpoints.newest_valid().unwrap().restored.unwrap();
        assert_eq!(restored.made_by.difference(&Maker::this(None)), None);
        other.state = restored.apply(&mut other.params, &mut *other.optimizer).unwrap();
        assert_eq!(other.bits(), saved.bits());
        assert_eq!(other.optimizer.steps(), 3);
        assert_eq!(other.state, RunState { optimizer_steps: 3, ..saved.state.clone() });
    }
}

#[test]
fn three_steps_and_two_after_a_restart_are_five_steps() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8] {
        let place = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(place.path(), 2, 0);
        Sample::after(3, kind).save(&checkpoints).unwrap();
        let mut resumed = Sample::fresh(kind);
        let restored = checkpoints.newest_valid().unwrap().restored.unwrap();
        resumed.state = restored.apply(&mut resumed.params, &mut *resumed.optimizer).unwrap();
        resumed.step(3);
        resumed.step(4);
        assert_eq!(resumed.bits(), Sample::after(5, kind).bits());
    }
}

#[test]
fn numbers_that_no_decimal_json_parser_is_trusted_with_come_back() {
    let mut state = RunState::default();
    let awkward = [0.1 + 0.2, 1e-310, f64::MAX, f64::INFINITY, -0.0, 2.5e-8_f32 as f64, 0.30000000000000004];
    state.spike.window = awkward.into();
    state.seconds = 1.0 / 3.0;
    let back: RunState = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    let bits = |state: &RunState| state.spike.window.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&back), bits(&state));
    assert_eq!(back.seconds.to_bits(), state.seconds.to_bits());
    let nan: RunState = RunState { seconds: f64::NAN, ..RunState::default() };
    let back: RunState = serde_json::from_slice(&serde_json::to_vec(&nan).unwrap()).unwrap();
    assert!(back.seconds.is_nan());
}

#[test]
fn the_folder_holds_what_the_manifest_lists_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(place.path(), 2, 0);
    let path = Sample::after(2, OptimizerKind::AdamW).save(&checkpoints).unwrap();
    assert_eq!(path, place.path().join("checkpoints/step-000002"));
    let mut names = RealDisk.list(&path).unwrap();
    names.sort();
    assert_eq!(names, ["README", MANIFEST_FILE, OPTIMIZER_FILE, PARAMS_FILE, STATE_FILE]);
    assert_eq!(RealDisk.list(&place.path().join("checkpoints")).unwrap(), ["step-000002"]);
    let manifest = Manifest::parse(&std::fs::read(path.join(MANIFEST_FILE)).unwrap()).unwrap();
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["README", OPTIMIZER_FILE, PARAMS_FILE, STATE_FILE]);
    // What PyTorch users would open it with.
    let bytes = std::fs::read(path.join(PARAMS_FILE)).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("layer.a").unwrap().shape(), [4, 9]);
}

#[test]
fn saving_a_step_again_replaces_it() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(place.path(), 2, 0);
    let mut sample = Sample::after(1, OptimizerKind::AdamW);
    sample.save(&checkpoints).unwrap();
    sample.state.tokens = 1;
    sample.save(&checkpoints).unwrap();
    assert_eq!(checkpoints.newest_valid().unwrap().restored.unwrap().state.tokens, 1);
    assert_eq!(RealDisk.list(&place.path().join("checkpoints")).unwrap(), ["step-000001"]);
}

#[test]
fn pruning_keeps_the_newest_and_the_best() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(place.path(), 1, 1);
    let mut sample = Sample::fresh(OptimizerKind::AdamW);
    let mut gone = Vec::new();
    for (step, score) in [3.0, 1.0, 2.0, 1.5].into_iter().enumerate() {
        sample.step(step as u64);
        let Sample { state, params, optimizer } = &sample;
        let snapshot =
            Snapshot { state, params, optimizer: &**optimizer, score: Some(score), made_by: Maker::this(None) };
        checkpoints.save(&snapshot, &mut |_| Ok(())).unwrap();
        gone.extend(checkpoints.prune().unwrap());
    }
    assert_eq!(gone, [1, 3]);
    assert_eq!(checkpoints.steps().unwrap(), [4, 2]);
}

#[test]
fn a_value_that_is_not_finite_is_never_saved() {
    for bad in [f32::NAN, f32::INFINITY] {
        let place = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(place.path(), 2, 0);
        let mut sample = Sample::after(1, OptimizerKind::AdamW);
        sample.params.iter_mut().nth(2).unwrap().value[17] = bad;
        let error = sample.save(&checkpoints).unwrap_err();
        assert!(error.message().contains("layer.w: value 17 is"), "{error}");
        assert_eq!(RealDisk.list(&place.path().join("checkpoints")).unwrap(), [] as [&str; 0]);
    }
}

#[test]
fn leftovers_of_a_dead_run_are_removed() {
    let place = tempfile::tempdir().unwrap();
    let saved = Sample::after(1, OptimizerKind::AdamW).save(&checkpoints(place.path(), 2, 0)).unwrap();
    let folder = place.path().join("checkpoints");
    std::fs::create_dir_all(folder.join(".tmp-step-000009/deep")).unwrap();
    std::fs::write(folder.join(".tmp-file"), "x").unwrap();
    std::fs::rename(&saved, folder.join(".tmp-replaced-step-000001")).unwrap();
    let checkpoints = checkpoints(place.path(), 2, 0);
    assert_eq!(RealDisk.list(&folder).unwrap(), ["step-000001"], "a folder that was to be replaced comes back");
    assert!(checkpoints.newest_valid().unwrap().restored.is_some());
}

#[test]
fn a_checkpoint_of_another_run_is_refused_with_the_tensor() {
    let place = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(place.path(), 2, 0);
    Sample::after(1, OptimizerKind::AdamW).save(&checkpoints).unwrap();
    let apply = |change: &dyn Fn(&mut Param), kind| {
        let mut other = Sample::fresh(kind);
        other.params.iter_mut().for_each(change);
        other.optimizer = kind.build(&OptimizerConfig::default(), &other.params);
        let restored = checkpoints.newest_valid().unwrap().restored.unwrap();
        restored.apply(&mut other.params, &mut *other.optimizer).unwrap_err().message().to_string()
    };
    let adamw = OptimizerKind::AdamW;
    let shape = apply(&|param| std::mem::swap(&mut param.rows, &mut param.cols), adamw);
    assert!(shape.contains("params.safetensors: layer.a: expected f32 of [9, 4], found [4, 9]"), "{shape}");
    let name = apply(&|param| param.name.push('2'), adamw);
    assert!(name.contains("layer.a2: missing"), "{name}");
    let optimizer = apply(&|_| {}, OptimizerKind::AdamW8);
    assert!(optimizer.contains("optimizer.safetensors: optimizer state layer.w.state1"), "{optimizer}");
}

#[test]
fn another_maker_is_told_apart() {
    let then = Maker { kernel_path: "other".into(), ..Maker::this(None) };
    let text = then.difference(&Maker::this(None)).unwrap();
    assert!(text.starts_with("kernels: other then, ") && !text.contains("program"), "{text}");
}
