package quiesce

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/blueprint"
	"stillpoint.io/stillpoint/internal/config"
	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
	"stillpoint.io/stillpoint/internal/unit"
	"stillpoint.io/stillpoint/internal/workload"
)

// probeLimit limits one probe of a container.
const probeLimit = 20 * time.Second

// The functions of the built-in blueprint.
const (
	freezeFunction = "FreezeFileSystems"
	thawFunction   = "ThawFileSystems"
)

// fileSystems finds the file systems of claims, each once, and chooses the containers to
// freeze them from. One plan has one fileSystems, so that its pre and post commands use
// the same containers.
type fileSystems struct {
	executor  podexec.Executor
	namespace string
	// claims are the claims to snapshot; no other claim is frozen.
	claims map[string]corev1.PersistentVolumeClaim
	// taken has the devices that already have a place, as node/major:minor.
	taken  map[string]bool
	probes map[podexec.Container]probed
	// chosen has the places of each hook and its arguments, so that the post command of
	// a hook thaws what its pre command froze, and no other hook does.
	chosen map[string][]place
	hooks  int
	// variables are the variables that the subPathExprs of a container refer to.
	variables map[podexec.Container][]string

	// driver returns the profile of a claim's driver.
	driver func(ctx context.Context, claim *corev1.PersistentVolumeClaim) (config.DriverProfile, error)
	// unfrozen has the claims that a hook asks to freeze and Stillpoint does not freeze.
	unfrozen map[string]Level
}

// Level is the consistency level of the snapshot of a claim that Stillpoint does not
// freeze, and the reason for not freezing it.
type Level struct{ Level, Why string }

// Values of Level.
const (
	LevelCrash     = "crash"
	LevelByStorage = "filesystem by storage" // the storage suspends the device
	LevelByDriver  = "filesystem by driver"
)

type place struct {
	container podexec.Container
	path      string
	// flush reports whether the file system is only written out, not frozen.
	flush bool
}

type probed struct {
	probe
	err error
}

func newFileSystems(executor podexec.Executor, namespace string, claims []corev1.PersistentVolumeClaim, driver func(context.Context, *corev1.PersistentVolumeClaim) (config.DriverProfile, error)) *fileSystems {
	f := &fileSystems{
		executor:  executor,
		namespace: namespace,
		claims:    map[string]corev1.PersistentVolumeClaim{},
		taken:     map[string]bool{},
		probes:    map[podexec.Container]probed{},
		chosen:    map[string][]place{},
		variables: map[podexec.Container][]string{},
		driver:    driver,
		unfrozen:  map[string]Level{},
	}
	for _, claim := range claims {
		f.claims[claim.Name] = claim
	}
	return f
}

// functions returns the functions of the built-in blueprint for one hook and its
// workload's pods. Their args are container, to freeze from, and paths, to freeze
// (separated by blanks or commas). Without args, all claims are frozen, each from the
// first container that can.
func (f *fileSystems) functions(pods []corev1.Pod) map[string]render.Function {
	f.hooks++
	hook := f.hooks
	function := func(command func(at place) []string) render.Function {
		return render.Function{
			Optional: []string{"container", "paths"},
			Calls: func(ctx context.Context, args render.Args) ([]render.Call, error) {
				container, err := args.String("container")
				if err != nil {
					return nil, err
				}
				list, err := args.String("paths")
				if err != nil {
					return nil, err
				}
				paths := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
				places, err := f.choose(ctx, hook, pods, container, paths)
				if err != nil {
					return nil, err
				}
				var calls []render.Call
				for _, place := range places {
					if words := command(place); words != nil {
						calls = append(calls, render.Call{
							Namespace: place.container.Namespace, Pod: place.container.Pod, Container: place.container.Name,
							Command: words,
						})
					}
				}
				return calls, nil
			},
		}
	}
	return map[string]render.Function{
		freezeFunction: function(func(at place) []string {
			if at.flush {
				return []string{"sync", "-f", at.path}
			}
			return []string{"fsfreeze", "--freeze", at.path}
		}),
		thawFunction: function(func(at place) []string {
			if at.flush {
				return nil
			}
			return []string{"fsfreeze", "--unfreeze", at.path}
		}),
	}
}

// flushes returns commands that write out every file system that the hooks freeze.
func flushes(hooks []Hook) []render.Call {
	var calls []render.Call
	for _, hook := range hooks {
		for _, step := range hook.Pre {
			if step.Func != freezeFunction {
				continue
			}
			for _, call := range step.Calls {
				call.Command = []string{"sync", "-f", placeOf(call).path}
				calls = append(calls, call)
			}
		}
	}
	return calls
}

// unthawed returns an error if a hook freezes a file system and does not thaw it. A thaw
// phase whose args differ from those of the freeze finds the file systems taken, and
// would leave them frozen.
func unthawed(hook Hook) error {
	thawed := map[place]bool{}
	for _, step := range hook.Post {
		for _, call := range step.Calls {
			if step.Func == thawFunction {
				thawed[placeOf(call)] = true
			}
		}
	}
	for _, step := range hook.Pre {
		for _, call := range step.Calls {
			if at := placeOf(call); step.Func == freezeFunction && call.Command[0] == "fsfreeze" && !thawed[at] {
				return fmt.Errorf("phase %s freezes %s in %s, and %s does not thaw it: it needs a phase with func %s and the same args",
					step.Phase, at.path, at.container, blueprint.Posthook, thawFunction)
			}
		}
	}
	return nil
}

// placeOf returns the place of a freeze, thaw or flush command: its last word is the path.
func placeOf(call render.Call) place {
	return place{container: ContainerOf(call), path: call.Command[len(call.Command)-1]}
}

// otherFreezes verifies the commands of a blueprint that run fsfreeze by themselves. It
// returns an error if the storage freezes the same file system, and warns if the
// built-in blueprint freezes in the same pod.
func (f *fileSystems) otherFreezes(ctx context.Context, hook Hook, flushes []render.Call, warn func(format string, args ...any)) error {
	for _, step := range hook.Pre {
		for _, call := range step.Calls {
			if step.Func == freezeFunction || !ThawsFileSystem(call.Command) {
				continue
			}
			at := ContainerOf(call)
			probed := f.probe(ctx, at) // has no mounts if the container has no shell
			for _, mount := range probed.mounts {
				if by, err := probed.suspendedBy(mount.Mountpoint); err == nil && by != "" && namesPath(call.Command, mount.Mountpoint, true) {
					return fmt.Errorf("blueprint %s, phase %s runs fsfreeze in %s on %s, which lies directly on %s: the storage freezes it for each snapshot, and frozen twice it cannot be mounted again; the blueprint %s only writes it out",
						hook.Blueprint, step.Phase, at, mount.Mountpoint, by, unit.FSFreeze)
				}
			}
			if slices.ContainsFunc(flushes, func(other render.Call) bool { return other.Pod == call.Pod }) {
				warn("Quiesced twice: phase %s of blueprint %s runs fsfreeze in %s, and so does the blueprint %s in the same pod. A file system that is frozen already cannot be frozen again, which fails the quiesce. Name one of the two",
					step.Phase, hook.Blueprint, at, unit.FSFreeze)
			}
		}
	}
	return nil
}

// choose returns one place for each file system that is not taken yet.
func (f *fileSystems) choose(ctx context.Context, hook int, pods []corev1.Pod, container string, paths []string) ([]place, error) {
	key := strings.Join([]string{strconv.Itoa(hook), container, strings.Join(paths, " ")}, "\x00")
	if places, ok := f.chosen[key]; ok {
		return places, nil
	}
	for i := range pods {
		for _, mount := range workload.Mounts(&pods[i]) {
			at := podexec.Container{Namespace: f.namespace, Pod: mount.Pod, Name: mount.Container}
			for _, reference := range variable.FindAllStringSubmatch(mount.SubPathExpr, -1) {
				if reference[1] != "" {
					f.variables[at] = append(f.variables[at], reference[1])
				}
			}
		}
	}
	candidates, err := f.candidates(pods, container, paths)
	if err != nil {
		return nil, err
	}
	var places []place
	for _, of := range candidates {
		profile, err := f.driver(ctx, &of.claim)
		if err != nil {
			return nil, err
		}
		if profile.Freeze == config.FreezeDriver {
			f.unfrozen[of.claim.Name] = Level{LevelByDriver, "by the profile of its driver (freeze: driver) the driver freezes its file system"}
			continue
		}
		chosen, device, err := f.choosePlace(ctx, of, profile.Freeze)
		if err != nil {
			return nil, err
		}
		for _, pod := range pods {
			if pod.Name == chosen.container.Pod {
				device = pod.Spec.NodeName + "/" + device
			}
		}
		if f.taken[device] {
			continue
		}
		f.taken[device] = true
		places = append(places, chosen)
	}
	f.chosen[key] = places
	return places, nil
}

// candidate is a volume and the mounts it could be frozen from.
type candidate struct {
	what   string
	claim  corev1.PersistentVolumeClaim
	mounts []workload.Mount
}

// candidates returns the volumes to freeze. It returns an error if the specification of
// a claim rules out a freeze.
func (f *fileSystems) candidates(pods []corev1.Pod, container string, paths []string) ([]candidate, error) {
	if len(paths) > 0 {
		return f.byPath(pods, container, paths)
	}
	var claims []string
	mounts := map[string][]workload.Mount{}
	for i := range pods {
		for name := range f.claims {
			if workload.Uses(&pods[i], name) && !slices.Contains(claims, name) {
				claims = append(claims, name)
			}
		}
		if workload.Unreachable(&pods[i]) != "" {
			continue
		}
		for _, mount := range workload.Mounts(&pods[i]) {
			if _, ok := f.claims[mount.Claim]; !ok {
				continue
			}
			if container == "" || mount.Container == container {
				mounts[mount.Claim] = append(mounts[mount.Claim], mount)
			}
		}
	}
	slices.Sort(claims)
	var candidates []candidate
	var block error // the first claim without a file system
	for _, name := range claims {
		claim := f.claims[name]
		if err := verifyFreezable(claim); err != nil {
			if !isBlock(claim) {
				return nil, err
			}
			block = cmp.Or(block, err)
			f.unfrozen[name] = Level{LevelCrash, "it has volumeMode Block, so there is no file system to freeze"}
			continue
		}
		what := fmt.Sprintf("claim %s/%s", claim.Namespace, name)
		if len(mounts[name]) == 0 && container == "" {
			return nil, fmt.Errorf("%s cannot be frozen: no container that mounts it runs: %s", what, podStates(pods, name))
		}
		if len(mounts[name]) == 0 {
			return nil, fmt.Errorf("%s: option container: %q does not mount it in any running pod", what, container)
		}
		// Prefer a mount of the whole volume.
		slices.SortStableFunc(mounts[name], func(a, b workload.Mount) int {
			return len(a.SubPath+a.SubPathExpr) - len(b.SubPath+b.SubPathExpr)
		})
		candidates = append(candidates, candidate{what: what, claim: claim, mounts: mounts[name]})
	}
	if len(candidates) == 0 {
		return nil, block
	}
	return candidates, nil
}

// podStates describes the pods that use a claim and the states of their containers.
func podStates(pods []corev1.Pod, claim string) string {
	var all []string
	for i := range pods {
		if workload.Uses(&pods[i], claim) {
			all = append(all, fmt.Sprintf("pod %s: %s", pods[i].Name, containerStates(&pods[i])))
		}
	}
	return strings.Join(all, "; ")
}

// byPath returns the volumes that the option paths names by their mount paths.
func (f *fileSystems) byPath(pods []corev1.Pod, container string, paths []string) ([]candidate, error) {
	var candidates []candidate
	for _, wanted := range paths {
		found := false
		var mounted []string
		for i := range pods {
			claimed := map[string]workload.Mount{}
			for _, mount := range workload.Mounts(&pods[i]) {
				claimed[mount.Container+"\x00"+mount.Path] = mount
			}
			of := candidate{what: fmt.Sprintf("path %s of pod %s/%s", wanted, pods[i].Namespace, pods[i].Name)}
			for _, c := range slices.Concat(pods[i].Spec.InitContainers, pods[i].Spec.Containers) {
				if !slices.Contains(workload.RunningContainers(&pods[i]), c.Name) || workload.Unreachable(&pods[i]) != "" || (container != "" && c.Name != container) {
					continue
				}
				for _, vm := range c.VolumeMounts {
					mounted = append(mounted, c.Name+":"+vm.MountPath)
					if path.Clean(vm.MountPath) != path.Clean(wanted) {
						continue
					}
					mount, isClaim := claimed[c.Name+"\x00"+vm.MountPath]
					if !isClaim {
						return nil, noClaim(of.what, &pods[i], vm.Name)
					}
					claim, ok := f.claims[mount.Claim]
					if !ok {
						return nil, fmt.Errorf("option paths: %s is claim %s/%s, which this backup does not snapshot", wanted, pods[i].Namespace, mount.Claim)
					}
					if err := verifyFreezable(claim); err != nil {
						return nil, err
					}
					of.claim, of.mounts = claim, append(of.mounts, mount)
				}
			}
			if len(of.mounts) > 0 {
				found = true
				candidates = append(candidates, of)
			}
		}
		if !found {
			slices.Sort(mounted)
			return nil, fmt.Errorf("option paths: no running container mounts a volume at %s; mounted are: %s",
				wanted, strings.Join(slices.Compact(mounted), ", "))
		}
	}
	return candidates, nil
}

// noClaim returns the error for a path whose volume is not a claim.
func noClaim(what string, pod *corev1.Pod, volume string) error {
	for _, v := range pod.Spec.Volumes {
		if v.Name == volume && v.HostPath != nil {
			return fmt.Errorf("%s must not be frozen: it is the directory %s of the node, and freezing it would freeze the node", what, v.HostPath.Path)
		}
	}
	return fmt.Errorf("%s must not be frozen: its volume %s is not a claim, so it is not snapshotted", what, volume)
}

// verifyFreezable returns an error if the specification of a claim rules out a freeze.
func verifyFreezable(claim corev1.PersistentVolumeClaim) error {
	name := fmt.Sprintf("claim %s/%s", claim.Namespace, claim.Name)
	instead := fmt.Sprintf("quiesce the application with a blueprint of its own, name the file systems to freeze by the annotation %spaths, or leave the claim out by the annotation %s: %s on it",
		api.AnnotationOptionPrefix, api.AnnotationQuiesce, unit.None)
	if isBlock(claim) {
		return fmt.Errorf("%s has volumeMode Block: there is no file system to freeze; %s", name, instead)
	}
	if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteMany) {
		return fmt.Errorf("%s is ReadWriteMany: a freeze on one node does not stop the writers on others; %s", name, instead)
	}
	return nil
}

func isBlock(claim corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock
}

// choosePlace returns the first place that can freeze a volume, or write it out if its
// storage freezes it. It also returns the volume's device.
func (f *fileSystems) choosePlace(ctx context.Context, of candidate, profile config.Freeze) (place, string, error) {
	var reasons []string
	for _, mount := range of.mounts {
		container := podexec.Container{Namespace: f.namespace, Pod: mount.Pod, Name: mount.Container}
		probed := f.probe(ctx, container)
		if probed.err != nil {
			reasons = append(reasons, probed.err.Error())
			continue
		}
		subPath, err := probed.subPath(mount)
		if err != nil {
			reasons = append(reasons, container.String()+": "+err.Error())
			continue
		}
		device, err := probed.fileSystemAt(mount.Path, subPath)
		by := ""
		if err == nil {
			if by, err = probed.suspendedBy(mount.Path); err != nil && profile != "" {
				err = nil // the driver's profile decides
			}
		}
		if err != nil {
			// Every other container has the same file system.
			return place{}, "", fmt.Errorf("%s must not be frozen: in %s, %w", of.what, container, err)
		}
		chosen := place{container: container, path: mount.Path, flush: by != "" || profile == config.FreezeFlush}
		if why := probed.unable(chosen.flush); why != "" {
			reasons = append(reasons, container.String()+" "+why)
			continue
		}
		switch {
		case by != "":
			f.unfrozen[mount.Claim] = Level{LevelByStorage, "its file system lies directly on " + by + ", which freezes it for each snapshot"}
		case chosen.flush:
			f.unfrozen[mount.Claim] = Level{LevelByStorage, "by the profile of its driver (freeze: flush) the storage freezes its file system for each snapshot"}
		}
		return chosen, device, nil
	}
	return place{}, "", fmt.Errorf("%s cannot be frozen from any container: %s", of.what, strings.Join(reasons, "; "))
}

func (f *fileSystems) probe(ctx context.Context, container podexec.Container) probed {
	if known, ok := f.probes[container]; ok {
		return known
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	var output bytes.Buffer
	stderr := podexec.NewOutput(Unmasked)
	var result probed
	err := f.executor.Exec(ctx, container, append([]string{"sh", "-c", probeScript, "stillpoint"}, f.variables[container]...), podexec.Streams{Stdout: &output, Stderr: stderr})
	if err != nil {
		result.err = fmt.Errorf("%w (Stillpoint needs sh in the container)", err)
		if text := stderr.String(); text != "" {
			result.err = fmt.Errorf("%w: %s", result.err, text)
		}
	} else if result.probe, err = readProbe(output.Bytes()); err != nil {
		result.err = fmt.Errorf("%s: %w", container, err)
	}
	f.probes[container] = result
	return result
}
