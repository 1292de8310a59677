package main

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"text/template"

	"stillpoint.io/stillpoint/tests/cluster"
	"stillpoint.io/stillpoint/tests/stage"
)

//go:embed app.yaml
var manifest string

const (
	deployment = "ledger"
	claim      = "data"
	mount      = "/mnt"
	ledger     = mount + "/ledger"
	files      = mount + "/files"
)

// app is the application of one way of getting its data out. Its namespace,
// and the schedule that backs it up, have the name of the way.
type app struct {
	*stage.Stage
	way string
}

func (a app) container() stage.Container {
	return stage.Container{Namespace: a.way, Deployment: deployment, Name: deployment}
}

func (a app) shell(ctx context.Context, script string) (string, error) {
	return a.Exec(ctx, a.container(), "sh", "-e", "-c", script)
}

// install makes the application and waits until it runs.
func (a app) install(ctx context.Context, storageClass string) error {
	text, err := appManifest(a.way, storageClass)
	if err != nil {
		return err
	}
	if err := apply(ctx, a.Stage, text); err != nil {
		return err
	}
	return a.AwaitRollout(ctx, a.way, deployment)
}

func appManifest(namespace, storageClass string) (string, error) {
	var text strings.Builder
	err := template.Must(template.New("app.yaml").Option("missingkey=error").Parse(manifest)).Execute(&text, map[string]string{
		"Namespace": namespace, "Deployment": deployment, "Claim": claim, "StorageClass": storageClass,
		"Image": cluster.Image, "Mount": mount, "Ledger": ledger,
	})
	if err != nil {
		return "", fmt.Errorf("fill app.yaml in: %w", err)
	}
	return text.String(), nil
}

// write makes the files those of a generation: it changes some of the one
// before, removes one, and adds others.
func (a app) write(ctx context.Context, generation int) error {
	_, err := a.shell(ctx, fmt.Sprintf(`
		mkdir -p %[1]s/deep/er && cd %[1]s
		rm -f deep/er/%[2]d
		for n in 1 2 3 4; do head -c 300000 /dev/urandom >changed-$n; done
		for n in 1 2 3 4; do head -c $((n * 100001)) /dev/urandom >deep/added-%[3]d-$n; done
		echo %[3]d >deep/er/%[3]d
		: >deep/er/empty`, files, generation-1, generation))
	return err
}

// sums are the checksums of all files but the ledger, by path.
func (a app) sums(ctx context.Context) (map[string]string, error) {
	out, err := a.shell(ctx, "cd "+files+" && find . -type f -exec sha256sum {} +")
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for line := range strings.Lines(out) {
		sum, path, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			return nil, fmt.Errorf("the checksums in %s: a line %q", a.way, line)
		}
		sums[path] = sum
	}
	return sums, nil
}

// lines is how many lines the ledger has. That they are not numbered one by
// one is an error.
func (a app) lines(ctx context.Context) (int, error) {
	text, err := a.shell(ctx, "cat "+ledger)
	if err != nil {
		return 0, err
	}
	n, err := numbered(text)
	if err != nil {
		return 0, fmt.Errorf("the ledger in %s: %w", a.way, err)
	}
	return n, nil
}

// numbered counts lines that are numbered one by one. What follows the end of
// the last line is being written.
func numbered(text string) (int, error) {
	all := strings.Split(text, "\n")
	whole := all[:len(all)-1]
	for i, line := range whole {
		if line != strconv.Itoa(i+1) {
			return 0, fmt.Errorf("line %d is %q", i+1, line)
		}
	}
	return len(whole), nil
}
