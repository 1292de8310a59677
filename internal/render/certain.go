package render

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/template"
	tree "text/template/parse"

	"stillpoint.io/stillpoint/internal/blueprint"
)

// certain finds mistakes behind the place where a template stopped because it
// asked for what is not known yet: every parameter that it will ask for
// whatever happens is asked for alone. What stands in a branch, or where the
// dot is another one, shows itself when the template is rendered.
func (e *evaluation) certain(list *tree.ListNode) error {
	for _, node := range list.Nodes {
		var pipe *tree.PipeNode
		switch n := node.(type) {
		case *tree.ActionNode:
			pipe = n.Pipe
		case *tree.IfNode:
			pipe = n.Pipe
		case *tree.WithNode:
			pipe = n.Pipe
		case *tree.RangeNode:
			pipe = n.Pipe
		case *tree.TemplateNode:
			pipe = n.Pipe
		}
		if pipe == nil {
			continue
		}
		if err := e.certainPipe(pipe); err != nil {
			return err
		}
	}
	return nil
}

func (e *evaluation) certainPipe(pipe *tree.PipeNode) error {
	for _, command := range pipe.Cmds {
		args := command.Args
		// These stop as soon as they know.
		if name, ok := args[0].(*tree.IdentifierNode); ok && (name.Ident == "and" || name.Ident == "or") {
			args = args[:min(len(args), 2)]
		}
		for _, arg := range args {
			if err := e.certainNode(arg); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *evaluation) certainNode(node tree.Node) error {
	var path []string
	switch n := node.(type) {
	case *tree.PipeNode:
		return e.certainPipe(n)
	case *tree.ChainNode:
		return e.certainNode(n.Node)
	case *tree.FieldNode:
		path = n.Ident
	case *tree.VariableNode:
		if n.Ident[0] == "$" {
			path = n.Ident[1:]
		}
	}
	if len(path) == 0 {
		return nil
	}
	const artifact, field, key = 1, 2, 3
	if path[0] == "ArtifactsIn" && len(path) > key && path[field] == "KeyValue" {
		made := e.Data.Declared[path[artifact]]
		if _, ok := made.KeyValue[path[key]]; !ok && made.KeyValue != nil {
			return refusal(fmt.Sprintf("artifact %s has no key %q; the keys are: %s", path[artifact], path[key], blueprint.List(slices.Collect(maps.Keys(made.KeyValue)))))
		}
	}
	source := "{{ with ." + strings.Join(path, ".") + " }}{{ end }}"
	parsed, err := template.New(templateName).Option("missingkey=error").Parse(source)
	if err != nil {
		return err
	}
	e.wants = wants{}
	err = parsed.Execute(io.Discard, e.scope)
	var later pending
	if e.wants.first != "" || errors.As(err, &later) {
		return nil
	}
	return err
}
