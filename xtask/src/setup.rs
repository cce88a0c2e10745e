/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! System packages and Rust components: what is needed, what is missing, and installing it where that is possible.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{self, cargo, interactive, program, step};

/// What a command needs from the system.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Need {
    /// Compiling the shell.
    Build,
    /// Starting it.
    Run,
    /// All tests.
    Test,
}

/// How to see, without Debian's package database, that something is there.
enum Sign {
    Program(&'static str),
    PkgConfig(&'static str),
    Library(&'static str),
}

/// One Debian package. Clang is apart: its packages carry the version in their names.
struct Package {
    need: Need,
    debian: &'static str,
    sign: Sign,
}

const fn package(need: Need, debian: &'static str, sign: Sign) -> Package {
    Package { need, debian, sign }
}

const PACKAGES: [Package; 29] = [
    package(Need::Build, "git", Sign::Program("git")),
    package(Need::Build, "g++", Sign::Program("c++")),
    package(Need::Build, "make", Sign::Program("make")),
    package(Need::Build, "cmake", Sign::Program("cmake")),
    package(Need::Build, "python3", Sign::Program("python3")),
    package(Need::Build, "m4", Sign::Program("m4")),
    // mozjs fetches its prebuilt archive with it; without, SpiderMonkey is built from source.
    package(Need::Build, "curl", Sign::Program("curl")),
    package(Need::Build, "pkg-config", Sign::Program("pkg-config")),
    package(
        Need::Build,
        "libfontconfig1-dev",
        Sign::PkgConfig("fontconfig"),
    ),
    package(Need::Build, "libfreetype-dev", Sign::PkgConfig("freetype2")),
    package(
        Need::Build,
        "libpcsclite-dev",
        Sign::PkgConfig("libpcsclite"),
    ),
    package(Need::Build, "libtss2-dev", Sign::PkgConfig("tss2-esys")),
    package(Need::Run, "libegl1", Sign::Library("libEGL.so.1")),
    package(Need::Run, "libegl-mesa0", Sign::Library("libEGL_mesa.so.0")),
    package(
        Need::Run,
        "libgl1-mesa-dri",
        Sign::Library("dri/swrast_dri.so"),
    ),
    package(Need::Run, "libpcsclite1", Sign::Library("libpcsclite.so.1")),
    // What the window loads at run time.
    package(Need::Run, "libx11-xcb1", Sign::Library("libX11-xcb.so.1")),
    package(Need::Run, "libxcursor1", Sign::Library("libXcursor.so.1")),
    package(Need::Run, "libxi6", Sign::Library("libXi.so.6")),
    package(Need::Run, "libxrandr2", Sign::Library("libXrandr.so.2")),
    package(
        Need::Run,
        "libxkbcommon-x11-0",
        Sign::Library("libxkbcommon-x11.so.0"),
    ),
    package(Need::Test, "pcscd", Sign::Program("pcscd")),
    package(
        Need::Test,
        "vsmartcard-vpcd",
        Sign::Library("pcsc/drivers/serial/libifdvpcd.so"),
    ),
    package(Need::Test, "opensc", Sign::Program("opensc-tool")),
    package(Need::Test, "openssl", Sign::Program("openssl")),
    package(Need::Test, "softhsm2", Sign::Program("softhsm2-util")),
    package(Need::Test, "swtpm", Sign::Program("swtpm")),
    package(Need::Test, "xvfb", Sign::Program("Xvfb")),
    // Fetches testharness.js and the like.
    package(Need::Test, "npm", Sign::Program("npm")),
];

/// The clang that is preferred. Any other that is installed with its library will do.
const CLANG_VERSION: u32 = 19;

/// A clang with its library.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Clang {
    /// The compiler.
    pub program: PathBuf,
    /// The directory with `libclang.so`.
    pub library: PathBuf,
}

/// The preferred clang if it is there, else the newest one.
pub fn clang() -> Option<Clang> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/usr/lib").ok()?.flatten() {
        let name = entry.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix("llvm-"));
        let Some(version) = version.and_then(|version| version.parse::<u32>().ok()) else {
            continue;
        };
        let library = entry.path().join("lib");
        let versioned = PathBuf::from(format!("/usr/bin/clang-{version}"));
        let program = [versioned, entry.path().join("bin/clang")]
            .into_iter()
            .find(|program| program.exists());
        if let Some(program) = program.filter(|_| has_libclang(&library)) {
            found.push((
                version == CLANG_VERSION,
                version,
                Clang { program, library },
            ));
        }
    }
    found.sort_by_key(|(preferred, version, _)| (*preferred, *version));
    found.pop().map(|(_, _, clang)| clang)
}

/// Whether bindgen can load libclang from `directory`.
fn has_libclang(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name == "libclang.so" || name.starts_with("libclang.so.")
    })
}

/// Installs what is missing for `need` and everything before it. Says what it does; does nothing where nothing is
/// missing.
pub fn setup(need: Need) -> Result<()> {
    if need == Need::Test {
        rust_components()?;
    }
    if program_exists("dpkg-query") {
        install_debian(&missing_debian(need))
    } else {
        report_missing(need)
    }
}

fn missing_debian(need: Need) -> Vec<String> {
    let wanted = PACKAGES
        .iter()
        .filter(|package| package.need <= need)
        // A program that does not come from a package serves as well.
        .filter(|package| !matches!(package.sign, Sign::Program(name) if program_exists(name)))
        .map(|package| package.debian)
        .collect::<Vec<_>>();
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(&wanted)
        .output();
    // It fails when it does not know one of the names, and still prints the others.
    let text = output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    let mut missing = not_installed(&wanted, &text);
    if clang().is_none() {
        let versioned = format!("clang-{CLANG_VERSION}");
        if process::succeeds(program("apt-cache").args(["show", &versioned])) {
            missing.extend([
                versioned,
                format!("libclang-{CLANG_VERSION}-dev"),
                format!("llvm-{CLANG_VERSION}"),
            ]);
        } else {
            missing.extend(["clang", "libclang-dev", "llvm"].map(str::to_owned));
        }
    }
    missing
}

/// The packages of `wanted` that dpkg does not list as installed.
fn not_installed(wanted: &[&str], listing: &str) -> Vec<String> {
    wanted
        .iter()
        .filter(|name| {
            !listing
                .lines()
                .any(|line| line == format!("{name} installed"))
        })
        .map(|name| (*name).to_owned())
        .collect()
}

fn install_debian(missing: &[String]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let is_root = process::output(program("id").arg("-u")).is_ok_and(|id| id.trim_ascii() == b"0");
    if !program_exists("apt-get") || !(is_root || program_exists("sudo")) {
        bail!("these Debian packages are missing; install them as root:\n  apt-get install {list}");
    }
    step(format!("Installing Debian packages: {list}"));
    let apt = |arguments: &[&str]| {
        let mut command = program(if is_root { "apt-get" } else { "sudo" });
        if !is_root {
            command.arg("apt-get");
        }
        if !interactive() {
            command.arg("--quiet=2");
        }
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&mut command)
    };
    // A fresh machine has no package lists, and lists that are out of date lead to files that are gone.
    apt(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(missing.iter().map(String::as_str));
    apt(&arguments)
}

/// On other systems: names what seems to be missing, and stops only where the build cannot succeed.
fn report_missing(need: Need) -> Result<()> {
    let mut missing = PACKAGES
        .iter()
        .filter(|package| package.need <= need && !is_there(&package.sign))
        .map(|package| (package.need, package.debian))
        .collect::<Vec<_>>();
    let has_clang = clang().is_some() || program_exists("clang");
    if !has_clang {
        missing.push((Need::Build, "clang with libclang"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Not found on this system (names as in Debian):");
    for (need, name) in &missing {
        eprintln!("  {name} (to {})", format!("{need:?}").to_lowercase());
    }
    if missing.iter().any(|(need, _)| *need == Need::Build) {
        bail!("install what is needed to build, then try again");
    }
    Ok(())
}

fn is_there(sign: &Sign) -> bool {
    match sign {
        Sign::Program(name) => program_exists(name),
        Sign::PkgConfig(name) => process::succeeds(program("pkg-config").args(["--exists", name])),
        Sign::Library(name) => {
            let architecture = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
            ["/usr/lib64", "/usr/lib", "/lib64", "/lib", &architecture]
                .iter()
                .any(|directory| Path::new(directory).join(name).exists())
        }
    }
}

fn program_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Daemons are not in every user's path.
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).is_file())
}

/// rustfmt and clippy, which a minimal toolchain lacks.
fn rust_components() -> Result<()> {
    let here = Path::new(".");
    let missing = [("rustfmt", "fmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(_, tool)| !process::succeeds(cargo(here).args([tool, "--version"])))
        .map(|(component, _)| component)
        .collect::<Vec<_>>();
    if missing.is_empty() {
        return Ok(());
    }
    if !program_exists("rustup") {
        bail!("Rust components are missing: {}", missing.join(", "));
    }
    step(format!("Installing Rust components: {}", missing.join(" ")));
    process::run(program("rustup").args(["component", "add"]).args(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let listing = "git installed\nopensc not-installed\npcscd config-files\n";
        assert_eq!(
            not_installed(&["git", "opensc", "pcscd", "m4"], listing),
            ["opensc", "pcscd", "m4"]
        );
    }
}
