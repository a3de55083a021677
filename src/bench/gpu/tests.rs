//! Every section on the emulated GPU: it runs, its checks pass, a section that ends early ends no other.

use super::*;
use crate::device::cuda::emulator::emulator;

fn report(driver: &Arc<dyn Driver>, sections: &[Section]) -> Value {
    let options = Options { sections: sections.to_vec(), scale: Scale::Tiny, model: None };
    run(driver, &options, &mut |_| {}).unwrap()
}

#[test]
fn every_section_runs_and_its_checks_pass() {
    let Some(driver) = emulator() else { return };
    let report = report(&driver, &Section::ALL);
    let sections = report["sections"].as_array().unwrap();
    assert_eq!(sections.len(), Section::ALL.len());
    for (section, expected) in sections.iter().zip(Section::ALL) {
        assert_eq!(section["section"], expected.name());
        assert_eq!((&section["passed"], &section["error"]), (&Value::Bool(true), &Value::Null), "{section:#}");
        assert!(!section["rows"].as_array().unwrap().is_empty(), "{section}");
        let checks = section["rows"].as_array().unwrap().iter().filter(|row| row["passed"].is_boolean()).count();
        let is_checked = matches!(expected, Section::Parity | Section::Steps | Section::Curve | Section::Memory);
        assert_eq!(checks > 0, is_checked, "{section}");
    }
    assert_eq!(report["passed"], true);
    let text = markdown(&report);
    for part in ["# emulated GPU", "## parity", "| attention, backward |", "## steps", "## throughput", "tokens_per_s"]
    {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn a_section_that_cannot_run_ends_no_other() {
    let Some(driver) = emulator() else { return };
    let options = Options {
        sections: vec![Section::Curve, Section::Quantise],
        scale: Scale::Tiny,
        model: Some(std::path::PathBuf::from("no-such-model")),
    };
    let report = run(&driver, &options, &mut |_| {}).unwrap();
    let [curve, quantise] = &report["sections"].as_array().unwrap()[..] else { panic!("{report}") };
    assert!(curve["error"].is_string() && curve["passed"] == false, "{curve:#}");
    assert_eq!((&quantise["passed"], &report["passed"]), (&Value::Bool(true), &Value::Bool(false)), "{report:#}");
}

#[test]
fn a_wrong_result_does_not_pass() {
    let [right, wrong] = [1.0f32, 1.1].map(|value| parity::worst(&[half::bf16::from_f32(value)], &[1.0], 1e-3));
    assert!(right <= 1.0 && wrong > 1.0 && parity::worst(&[half::bf16::NAN], &[1.0], 1e-3) > 1.0);
}
