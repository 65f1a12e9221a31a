# Functions for folders that run where their programs were not built: bin/ and lib/ hold everything
# but glibc, CUDA's libraries and the driver's. Sourced by scripts.

# glibc must be the system's own, and so must what belongs to the GPU's driver.
is_of_the_system() { # name
  case $1 in
    linux-vdso.so.* | ld-linux*.so.* | libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | \
      librt.so.* | libresolv.so.* | libutil.so.* | libanl.so.* | libnsl.so.* | libmvec.so.*) ;;
    libcuda.so* | libcudart.so* | libcublas*.so* | libnccl.so* | libnvidia-*.so* | libnvrtc*.so*) ;;
    *) return 1 ;;
  esac
}

# Copies the libraries that the files given need, through all of theirs. ldd lists the closure.
copy_libraries() { # folder file...
  local folder=$1 name path
  while read -r name path; do
    if ! is_of_the_system "$name" && [[ ! -e $folder/$name ]]; then
      if [[ $path == not ]]; then
        echo "${0##*/}: $name is not found" >&2
        return 1
      fi
      cp -L "$path" "$folder/$name"
      chmod 644 "$folder/$name"
    fi
  done < <(ldd "${@:2}" | awk '$2 == "=>" {print $1, $3}' | sort -u)
}

# Lets the programs and libraries find each other wherever the folder lies.
set_relative_paths() { # folder
  local file
  # $ORIGIN is the loader's, not the shell's.
  # shellcheck disable=SC2016
  for file in "$1"/bin/*; do patchelf --set-rpath '$ORIGIN/../lib' "$file"; done
  # shellcheck disable=SC2016
  for file in "$1"/lib/*.so*; do patchelf --set-rpath '$ORIGIN' "$file"; done
}

# Fails where a file of the folder would load a library of the system.
verify_bundle() { # folder
  local strays
  strays=$(env -u LD_LIBRARY_PATH ldd "$1"/bin/* "$1"/lib/*.so* | awk '$2 == "=>" {print $1, $3}' |
    sort -u | while read -r name path; do
    if [[ $path != "$1"/* ]] && ! is_of_the_system "$name"; then echo "$name => $path"; fi
  done)
  if [[ -n $strays ]]; then
    printf '%s: not bundled:\n%s\n' "${0##*/}" "$strays" >&2
    return 1
  fi
}
