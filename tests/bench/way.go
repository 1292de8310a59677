package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"stillpoint.io/stillpoint/internal/api"
	"stillpoint.io/stillpoint/internal/unit"
)

// way is how the volumes of an application are snapshotted, and how it is
// quiesced for that.
type way int

const (
	hooks    way = iota // Velero's own pre and post hooks
	early               // the same, and Velero polls every second for the first ten
	around              // Stillpoint quiesces around Velero's own snapshots
	group               // Stillpoint takes the snapshots, by a volume policy
	location            // Stillpoint's VolumeSnapshotter, on a server without EnableCSI
	floor               // no backup and no freeze: all snapshots asked for at once
)

var ways = []way{hooks, early, around, group, location, floor}

// names are how ways are asked for. They are fit for names of objects.
var names = [...]string{"hooks", "early", "around", "group", "snapshotter", "floor"}

func (w way) String() string { return names[w] }

// aroundTimeout is for the freeze of a Deployment with many volumes: around
// Velero's snapshots it takes 5 s for each but the last.
const aroundTimeout = "3m"

// earlyVariable makes the Velero server poll a snapshot more often at first.
const earlyVariable = "CSI_SNAPSHOT_EARLY_FREQUENT_POLLING"

// parseWays reads a list as in "hooks,group".
func parseWays(list string) ([]way, error) {
	var found []way
	for word := range strings.SplitSeq(list, ",") {
		i := slices.Index(names[:], word)
		if i < 0 {
			return nil, fmt.Errorf("no way %q; there are %s", word, strings.Join(names[:], ", "))
		}
		found = append(found, way(i))
	}
	return found, nil
}

// parseVolumes reads a list as in "1,4,16".
func parseVolumes(list string) ([]int, error) {
	var found []int
	for word := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || slices.Contains(found, n) {
			return nil, fmt.Errorf("numbers of volumes are a list as in 1,4,16 with each once, not %q", list)
		}
		found = append(found, n)
	}
	return found, nil
}

// annotations that ask for this way, and for this only. An empty value takes
// one away.
func (w way) annotations(dirs []string) (deployment, pod map[string]string) {
	deployment = map[string]string{api.AnnotationQuiesce: "", api.AnnotationQuiesceTimeout: ""}
	pod = map[string]string{
		"pre.hook.backup.velero.io/container": "", "pre.hook.backup.velero.io/command": "", "pre.hook.backup.velero.io/on-error": "",
		"post.hook.backup.velero.io/container": "", "post.hook.backup.velero.io/command": "",
	}
	switch w {
	case hooks, early:
		for _, hook := range []struct{ prefix, option string }{{"pre", "--freeze"}, {"post", "--unfreeze"}} {
			pod[hook.prefix+".hook.backup.velero.io/container"] = sidecar
			pod[hook.prefix+".hook.backup.velero.io/command"] = hookCommand(hook.option, dirs)
		}
		pod["pre.hook.backup.velero.io/on-error"] = "Fail"
	case around:
		deployment[api.AnnotationQuiesce] = unit.FSFreeze
		deployment[api.AnnotationQuiesceTimeout] = aroundTimeout
	case group, location:
		deployment[api.AnnotationQuiesce] = unit.FSFreeze
	case floor:
	}
	return deployment, pod
}

// hookCommand is one command for all volumes, as Velero has one hook for each
// pod. One volume needs no shell.
func hookCommand(option string, dirs []string) string {
	command := []string{"fsfreeze", option, dirs[0]}
	if len(dirs) > 1 {
		each := make([]string, len(dirs))
		for i, dir := range dirs {
			each[i] = "fsfreeze " + option + " " + dir
		}
		command = []string{"sh", "-c", strings.Join(each, " && ")}
	}
	for i, word := range command {
		command[i] = strconv.Quote(word) // which is JSON for words as plain as these
	}
	return "[" + strings.Join(command, ",") + "]"
}
