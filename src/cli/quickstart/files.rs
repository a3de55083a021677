//! The files of the quickstart, compiled into the program: an installed binary needs nothing beside it.
//!
//! Invariant: the table holds every file of `data/quickstart/model`, `data/italian/train` and `data/italian/held-out`
//! (tested), and the configuration is `configs/quickstart.toml` with its paths moved to where the files are unpacked.

/// A file under its place in the quickstart's folder.
pub struct Embedded {
    /// Path below the folder, `/` between its parts.
    pub path: &'static str,
    /// Content.
    pub bytes: &'static [u8],
}

macro_rules! embedded {
    ($path:literal) => {
        Embedded { path: $path, bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/", $path)) }
    };
}

/// `configs/quickstart.toml` as it stands in the repository, with paths that start at its root.
const CONFIG: &str = include_str!("../../../configs/quickstart.toml");

/// The configuration for files unpacked into `folder` (below the current folder, `/` between its parts).
pub fn config_text(folder: &str) -> String {
    CONFIG
        .replace("\"data/", &format!("\"{folder}/"))
        .replace("output = \"runs\"", &format!("output = \"{folder}/runs\""))
        .replace("llamantino train configs/", &format!("llamantino train {folder}/"))
}

/// Model, tokenizer and corpus.
pub const FILES: &[Embedded] = &[
    embedded!("quickstart/model/config.json"),
    embedded!("quickstart/model/generation_config.json"),
    embedded!("quickstart/model/model.safetensors"),
    embedded!("quickstart/model/tokenizer.json"),
    embedded!("quickstart/model/tokenizer_config.json"),
    embedded!("italian/train/01-il-mercato-del-sabato.txt"),
    embedded!("italian/train/02-come-si-fa-il-pane.txt"),
    embedded!("italian/train/03-la-lumaca-e-il-treno.txt"),
    embedded!("italian/train/04-il-treno-delle-sette.txt"),
    embedded!("italian/train/05-lettera-alla-nonna.txt"),
    embedded!("italian/train/06-perche-la-luna-cambia.txt"),
    embedded!("italian/train/07-i-vicini-del-terzo-piano.txt"),
    embedded!("italian/train/08-il-minestrone.txt"),
    embedded!("italian/train/09-diario-di-una-settimana-di-pioggia.txt"),
    embedded!("italian/train/10-come-sta-in-piedi-un-ponte.txt"),
    embedded!("italian/train/11-dal-medico.txt"),
    embedded!("italian/train/12-il-gatto-della-biblioteca.txt"),
    embedded!("italian/train/13-che-cosa-fa-una-banca.txt"),
    embedded!("italian/train/14-il-primo-giorno-della-maestra.txt"),
    embedded!("italian/train/15-un-paio-di-scarpe.txt"),
    embedded!("italian/train/16-le-api.txt"),
    embedded!("italian/train/17-una-giornata-al-mare.txt"),
    embedded!("italian/train/18-il-viaggio-dell-acqua.txt"),
    embedded!("italian/train/19-l-orologiaio.txt"),
    embedded!("italian/train/20-dove-vanno-i-rifiuti.txt"),
    embedded!("italian/train/21-riparare-una-gomma-bucata.txt"),
    embedded!("italian/train/22-come-funziona-la-bicicletta.txt"),
    embedded!("italian/train/23-la-storia-del-caffe.txt"),
    embedded!("italian/train/24-lettera-di-scuse.txt"),
    embedded!("italian/train/25-in-montagna-con-lo-zio.txt"),
    embedded!("italian/train/26-perche-la-terra-trema.txt"),
    embedded!("italian/train/27-l-asino-e-la-nuvola.txt"),
    embedded!("italian/train/28-la-torta-di-mele.txt"),
    embedded!("italian/train/29-diario-di-un-trasloco.txt"),
    embedded!("italian/train/30-come-nasce-un-film.txt"),
    embedded!("italian/train/31-alla-stazione.txt"),
    embedded!("italian/train/32-la-nevicata.txt"),
    embedded!("italian/train/33-il-primo-stipendio.txt"),
    embedded!("italian/train/34-un-orto-sul-balcone.txt"),
    embedded!("italian/train/35-la-bambina-che-contava-le-finestre.txt"),
    embedded!("italian/train/36-come-funziona-il-frigorifero.txt"),
    embedded!("italian/train/37-lettera-al-sindaco.txt"),
    embedded!("italian/train/38-la-sarta-e-il-vento.txt"),
    embedded!("italian/held-out/01-dal-barbiere.txt"),
    embedded!("italian/held-out/02-come-nasce-il-vetro.txt"),
    embedded!("italian/held-out/03-il-riccio-e-il-lampione.txt"),
    embedded!("italian/held-out/04-lettera-da-un-isola.txt"),
    embedded!("italian/held-out/05-al-ristorante.txt"),
    embedded!("italian/held-out/06-zuppa-di-lenticchie.txt"),
    embedded!("italian/held-out/07-diario-di-piscina.txt"),
];
