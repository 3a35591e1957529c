// Analyze runs all of Istio's analyzers over manifests in files.
//
// `istioctl analyze --use-kube=false` leaves out those that look at what runs (Services, Deployments, Pods), because
// files are taken for a part of a cluster. Here they are taken for the whole of it.
package main

import (
	"fmt"
	"log"
	"os"

	"istio.io/istio/pkg/config/analysis/analyzers"
	"istio.io/istio/pkg/config/analysis/diag"
	"istio.io/istio/pkg/config/analysis/local"
	istiolog "istio.io/istio/pkg/log"
)

func main() {
	for _, scope := range istiolog.Scopes() {
		scope.SetOutputLevel(istiolog.ErrorLevel)
	}
	messages, err := analyze(os.Args[1:])
	if err != nil {
		log.Fatal(err)
	}
	for i := range messages {
		fmt.Println(messages[i].String())
	}
	if len(messages) > 0 {
		os.Exit(1)
	}
}

// analyze returns what the analyzers say of the manifests, from warnings upwards.
func analyze(paths []string) (diag.Messages, error) {
	analyzer := local.NewIstiodAnalyzer(analyzers.AllCombined(), "", "istio-system", nil)
	var sources []local.ReaderSource
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		sources = append(sources, local.ReaderSource{Name: path, Reader: file})
	}
	if err := analyzer.AddTestReaderKubeSource(sources); err != nil {
		return nil, err
	}
	result, err := analyzer.Analyze(make(chan struct{}))
	if err != nil {
		return nil, err
	}
	if len(result.SkippedAnalyzers) > 0 {
		return nil, fmt.Errorf("analyzers were skipped: %v", result.SkippedAnalyzers)
	}
	return result.Messages.FilterOutLowerThan(diag.Warning), nil
}
