"""Virtual machines whose kernels have what a host's may lack: radios, batman-adv, WireGuard, netem, flowtables.

`kernels` says which are there, `uml_build` and `qemu_image` make them, `machine.run` runs a command in one;
`tools/vmlab` is the command. docs/vmlab.md has the reasons.
"""
